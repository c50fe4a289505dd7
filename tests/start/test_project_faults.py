"""What goes wrong in a project."""

import tiny
from conftest import BaseModule, TinyModule
from tiny import use_descriptors


class NoLoss(BaseModule):
    create_model, create_optimiser = TinyModule.create_model, TinyModule.create_optimiser
    create_metrics, forward_model = TinyModule.create_metrics, TinyModule.forward_model
    forward_loss = TinyModule.forward_loss


def test_a_class_that_lacks_a_hook_is_named_with_the_hook(run, config):
    code, _, err = run("fit", "--config", config, "--model", f"{__name__}.NoLoss")
    assert code != 0
    assert err == (
        "error: `NoLoss` does not define `create_loss`: every BaseModule needs it "
        "(`help(lightning_trainer.base.module.BaseModule.create_loss)` says what to set)\n"
    )


def test_an_error_that_the_project_explains_is_one_line_in_terminal_and_log(
    run, config, sessions, monkeypatch
):
    use_descriptors(monkeypatch)
    code, out, err = run("fit", "--config", config, "--data", "tiny.NoFiles")
    assert code == 1
    assert err == "error: `data.root` is 'x': there are no images in it, give --data.root FOLDER\n"
    [session] = sessions()
    assert (session / "log.txt").read_text() == out + err


def test_a_fault_in_a_hook_leaves_its_traceback_from_there_in_terminal_and_log(
    run, config, sessions, monkeypatch
):
    use_descriptors(monkeypatch)
    code, out, err = run("fit", "--config", config, "--model", "tiny.Breaks")
    assert code == 1
    assert err.startswith(f'Traceback (most recent call last):\n  File "{tiny.__file__}"')
    assert 'raise ValueError("a fault in a hook")' in err
    assert err.endswith("ValueError: a fault in a hook\n")
    assert "Stopped at iteration 12\n" in out
    [session] = sessions()
    log = (session / "log.txt").read_text()
    assert sorted(log.splitlines()) == sorted((out + err).splitlines())
    assert err in log


def test_the_log_is_what_the_terminal_showed(fit, run, monkeypatch):
    use_descriptors(monkeypatch)
    session = fit("--trainer.max_steps", "11")
    before = (session / "log.txt").read_text()
    assert "Finished at iteration 11\n" in before
    code, out, err = run("fit", "--ckpt_path", session, "--trainer.max_steps", "12")
    assert (code, err) == (0, "")
    assert (session / "log.txt").read_text() == before + out
