"""Which checkpoint a command takes, what is none, and what must not be executed."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import TinyModule
from tiny import contents, logged, same, weights


@pytest.fixture(scope="module")
def best(whole) -> int:
    """The iteration of the best checkpoint, which is not the last."""
    best = torch.load(whole / "checkpoints" / "best.ckpt")["global_step"]
    loss = logged(whole, "val/loss")
    assert best < 23
    assert f"{loss[best]:.4f}" != f"{loss[23]:.4f}"
    assert not same(weights(whole, "best"), weights(whole))
    return best


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_session_is_scored_at_its_best_checkpoint(run, sessions, done, best, command):
    loss = logged(done, "val/loss")
    files = ["config.yaml", "environment.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"]
    before = [(done / file).read_bytes() for file in files]
    code, out, err = run(command, "--ckpt_path", done)
    assert code == 0, err
    assert f"Checkpoint: {done}/checkpoints/best.ckpt (iteration {best})\n" in out
    mode = "Val" if command == "validate" else "Test"
    assert f"{mode} loss: {loss[best]:.4f}\n" in out  # the tiny test data are the val data
    assert sessions() == []
    assert [(done / file).read_bytes() for file in files] == before
    if command == "test":
        assert logged(done, "test/loss") == {best: loss[best]}


def test_predictions_are_those_of_the_best_checkpoint_in_the_order_of_the_data(
    run, sessions, done, best
):
    code, out, err = run("predict", "--ckpt_path", done)
    assert code == 0, err
    assert f"Predictions saved to: {done}/predictions.pt\n" in out
    assert sessions() == []
    batches = torch.load(done / "predictions.pt")
    assert [len(batch["i"]) for batch in batches] == [4, 4, 2]
    assert torch.cat([batch["i"] for batch in batches]).tolist() == list(range(10))
    model = TinyModule()
    model.configure_model()
    model.load_state_dict(weights(done, "best"))
    model.eval()
    for batch in batches:
        assert torch.equal(model.forward_model(batch), batch["output"])


def test_a_file_inside_a_session_is_taken_itself(run, sessions, done, best):
    code, out, _ = run("test", "--ckpt_path", done / "checkpoints" / "last.ckpt")
    assert code == 0
    assert f"Test loss: {logged(done, 'val/loss')[23]:.4f}\n" in out
    assert sessions() == []


# What can't be gone on from -----------------------------------------------------------------------


def damage_nothing(path: Path) -> None:
    pass


def write_text(path: Path) -> None:
    path.write_text("hello")


def write_weights(path: Path) -> None:
    torch.save({"layer.weight": torch.ones(3)}, path)


def write_tensor(path: Path) -> None:
    torch.save(torch.ones(3), path)


def write_half(path: Path) -> None:
    torch.save({"global_step": 3, "state_dict": {"w": torch.ones(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize(
    ("write", "named"),
    [
        (damage_nothing, "there is no such session folder or checkpoint file"),
        (Path.mkdir, "give a session folder (session_...) or a checkpoint file"),
        (Path.touch, "which is empty"),
        (write_text, "which is truncated, damaged or no checkpoint"),
        (write_weights, "it has no training state, only layer.weight"),
        (write_tensor, "can't be read as a checkpoint"),
        (write_half, "which is truncated, damaged or no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(run, config, sessions, tmp_path, write, named, with_config):
    path = tmp_path / "deep" / "er" / "x.ckpt"
    path.parent.mkdir(parents=True)
    write(path)
    code, out, err = run("fit", "--ckpt_path", path, *(["-c", config] if with_config else []))
    assert (code, out) == (2, "")
    assert str(path) in err
    assert named in err
    assert len(err.splitlines()) <= 3
    assert sessions() == []


def test_a_checkpoint_without_settings_needs_a_config(run, whole, tmp_path):
    checkpoint = torch.load(whole / "checkpoints" / "last.ckpt")
    del checkpoint["lightning_trainer"]
    (tmp_path / "a" / "b").mkdir(parents=True)
    torch.save(checkpoint, tmp_path / "a" / "b" / "x.ckpt")
    code, _, err = run("fit", "--ckpt_path", tmp_path / "a" / "b" / "x.ckpt")
    assert code == 2
    assert "give them by `--config`" in err


def test_a_session_without_checkpoints_says_how_to_start_again(run, half):
    shutil.rmtree(half / "checkpoints")
    code, out, err = run("fit", "--ckpt_path", half)
    assert (code, out) == (2, "")
    assert f"{half} has no checkpoint to use" in err
    assert f"`fit --config {half}/config.yaml`" in err


# What must not be executed ------------------------------------------------------------------------


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_malicious_checkpoint_is_passed_over_and_not_executed(run, half, tmp_path):
    victim, last = tmp_path / "executed", half / "checkpoints/last.ckpt"
    checkpoint = torch.load(last)
    last.unlink()  # which may be the best one's other name
    torch.save({**checkpoint, "x": Malicious(victim)}, last)
    code, _, err = run("fit", "--ckpt_path", half, "--trainer.max_steps=12")
    assert (code, err) == (0, f"{last} is no checkpoint of Lightning: passed over\n")
    assert not victim.exists()


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_malicious_file_is_refused_and_not_executed(run, half, config, tmp_path, command):
    victim, path = tmp_path / "executed", tmp_path / "a.ckpt"
    checkpoint = torch.load(half / "checkpoints/last.ckpt")
    torch.save({**checkpoint, "x": Malicious(victim)}, path)
    code, _, err = run(command, "--ckpt_path", path, "--config", config)
    assert code == 2
    assert f"error: {path} can't be read as a checkpoint of Lightning" in err
    assert not victim.exists()


def test_a_checkpoint_is_fetched_from_nowhere(run, config):
    code, _, err = run("fit", "--config", config, "--ckpt_path", "http://127.0.0.1:9/a.ckpt")
    assert code == 2
    assert "there is no such session folder or checkpoint file" in err


def test_a_config_executes_nothing(run, config, tmp_path):
    victim = tmp_path / "executed"
    config.write_text(f'tag: !!python/object/apply:os.system ["touch {victim}"]\n')
    code, _, err = run("fit", "--config", config)
    assert code == 2
    assert "could not determine a constructor for the tag" in err
    assert not victim.exists()


def test_a_checkpoint_of_another_model_is_refused_with_the_shapes(run, half):
    before = contents(half)
    flags = ("--model=tiny.WideModule", "--trainer.max_steps=12")
    code, _, err = run("fit", "--ckpt_path", half, *flags)
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("error: the checkpoint is of another model: ")
    assert "`model.0.weight` is (8, 4) in the checkpoint, (9, 4) in the model" in last
    checkpoints = {name: content for name, content in contents(half).items() if "ckpt" in str(name)}
    assert checkpoints.items() <= before.items()
