"""Ctrl-C and its kin end a run after the iteration, with all of it saved."""

import inspect
import os
import re
import shutil
import signal
from collections.abc import Callable

import lightning.pytorch as pl
import pytest
import torch
from conftest import TinyModule, start_process
from restarts import result, same

INTERVAL = "--trainer.val_check_interval"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def handlers():
    """The signals are given back, however a run ends."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    after = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Sends signals to this process in the forward pass for which `when(module)` first holds."""
    original = TinyModule.forward_model

    def send_(when: Callable[[TinyModule], bool], *numbers: int) -> None:
        def forward_model(self, batch):
            if not self.trainer.sanity_checking and when(self):
                monkeypatch.setattr(TinyModule, "forward_model", original)
                for number in numbers:
                    os.kill(os.getpid(), number)
            return original(self, batch)

        monkeypatch.setattr(TinyModule, "forward_model", forward_model)

    return send_


def in_iteration(k: int) -> Callable[[TinyModule], bool]:
    return lambda module: module.training and module.global_step + 1 == k


def in_validation(k: int, batch: int) -> Callable[[TinyModule], bool]:
    """In the validation after iteration k."""

    def when(module: TinyModule) -> bool:
        val_loop = module.trainer.fit_loop.epoch_loop.val_loop
        seen = val_loop.batch_progress.current.completed
        return not module.training and module.global_step == k and seen == batch

    return when


class CountBatches(pl.Callback):
    """A project's own callback with a state that each batch changes, e.g. averaged weights."""

    n_batches = 0

    def on_train_batch_end(self, *args) -> None:
        self.n_batches += 1

    def state_dict(self) -> dict[str, int]:
        return {"n_batches": self.n_batches}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.n_batches = state_dict["n_batches"]


def last(session) -> dict:
    return torch.load(session / "checkpoints" / "last.ckpt")


def test_each_signal_ends_the_run_after_the_iteration_and_it_goes_on_bitwise(
    run, config, sessions, send
):
    assert run("fit", "--config", config)[0] == 0
    expected = result(sessions()[0])
    # At 10 a validation is due: it runs when the run goes on.
    for number, k in zip(SIGNALS, (1, 7, 10, 16), strict=True):
        send(in_iteration(k), number)
        code, out, err = run("fit", "--config", config)
        session = sessions()[-1]
        assert (code, last(session)["global_step"]) == (128 + number, k)
        assert f"\n\nStopped by {number.name} at iteration {k}\n" in out
        assert re.search(rf"^To go on: +python .* fit --ckpt_path {session}$", out, re.MULTILINE)
        assert "Traceback" not in out + err
        code, out, err = run("fit", "--ckpt_path", session)
        assert code == 0, err
        assert same(result(session), expected), f"stopped by {number.name} in iteration {k}"


def test_in_the_last_iteration_it_leaves_only_the_validation_to_do(run, config, sessions, send):
    assert run("fit", "--config", config)[0] == 0
    send(in_iteration(23), signal.SIGTERM)
    assert run("fit", "--config", config)[0] == 143
    session = sessions()[-1]
    assert last(session)["global_step"] == 23
    code, out, err = run("fit", "--ckpt_path", session)
    assert code == 0, err
    assert out.count("Val loss") == 1
    assert same(result(session), result(sessions()[0]))


def test_accumulated_gradients_are_stepped_before_the_run_ends(run, config, sessions, send):
    flags = ("--trainer.accumulate_grad_batches=3", "--trainer.max_steps=8")
    assert run("fit", "--config", config, *flags)[0] == 0
    send(in_iteration(4), signal.SIGTERM)  # in the first batch of the iteration
    assert run("fit", "--config", config, *flags)[0] == 143
    session = sessions()[-1]
    assert last(session)["global_step"] == 4
    assert run("fit", "--ckpt_path", session)[0] == 0
    assert same(result(session), result(sessions()[0]))


@pytest.mark.long
@pytest.mark.parametrize(
    "flags",
    [
        (),
        pytest.param(("--data.n_samples=20",), marks=pytest.mark.slow),
        ("--data.n_samples=36", "--trainer.accumulate_grad_batches=2"),
        pytest.param(
            ("--data.n_samples=20", "--trainer.check_val_every_n_epoch=1", INTERVAL + "=1.0"),
            marks=pytest.mark.slow,
        ),
        ("--data.n_samples=40", "--trainer.check_val_every_n_epoch=1", INTERVAL + "=0.5"),
    ],
    ids=["amid an epoch", "at its end", "accumulating", "of each epoch", "of half an epoch"],
)
def test_within_a_validation_it_ends_at_once_and_goes_on_with_all_of_it(
    run, config, sessions, send, flags
):
    assert run("fit", "--config", config, *flags)[0] == 0
    expected = result(sessions()[0])
    for first, second in ((1, 0), (2, 1)):  # in the first two of three batches, and the last two
        send(in_validation(10, batch=first), signal.SIGINT)
        code, out, _ = run("fit", "--config", config, *flags)
        session = sessions()[-1]
        assert (code, out.count("Val loss"), last(session)["global_step"]) == (130, 1, 10)
        # The validation that the run goes on with is stopped as well, and the next comes through.
        send(in_validation(10, batch=second), signal.SIGTERM)
        code, out, _ = run("fit", "--ckpt_path", session)
        assert (code, out.count("Val loss"), last(session)["global_step"]) == (143, 0, 10)
        code, out, err = run("fit", "--ckpt_path", session)
        assert code == 0, err
        assert out.count("Val loss") == 4
        assert same(result(session), expected)


@pytest.mark.parametrize(
    "flags",
    [("--trainer.max_steps=10",), ("--trainer.max_steps=-1", "--trainer.max_epochs=2")],
    ids=["by iterations", "by epochs"],
)
def test_within_the_last_validation_it_leaves_only_that_to_do(run, config, sessions, send, flags):
    flags = ("--data.n_samples=20", *flags)  # 5 iterations an epoch
    assert run("fit", "--config", config, *flags)[0] == 0
    send(in_validation(10, batch=1), signal.SIGTERM)
    assert run("fit", "--config", config, *flags)[0] == 143
    code, out, err = run("fit", "--ckpt_path", sessions()[-1])
    assert code == 0, err
    assert out.count("Val loss") == 1
    assert same(result(sessions()[-1]), result(sessions()[0]))


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_ctrl_c_does_not_wait_for_the_iteration(run, config, sessions, send, first):
    send(in_iteration(7), first, signal.SIGINT)
    code, out, _ = run("fit", "--config", config)
    assert re.search(r"^Stopped( by \w+)? at iteration 6$", out, flags=re.MULTILINE)
    assert last(sessions()[0])["global_step"] == 5
    assert code == 130


def test_without_checkpoints_a_signal_ends_the_run_all_the_same(run, config, send):
    send(in_iteration(7), signal.SIGTERM)
    code, out, err = run("fit", "--config", config, "--trainer.enable_checkpointing=false")
    assert code == 143
    assert "Stopped by SIGTERM at iteration 7\n" in out
    assert "To go on" not in out
    assert "Traceback" not in out + err


def test_what_a_project_counts_in_callbacks_of_its_own_includes_the_last_iteration(
    run, config, sessions, send
):
    send(in_iteration(7), signal.SIGTERM)
    flags = ("--trainer.callbacks=test_stopping.CountBatches",)
    assert run("fit", "--config", config, *flags)[0] == 143
    assert last(sessions()[0])["callbacks"]["CountBatches"] == {"n_batches": 7}


def test_a_project_that_exits_by_itself_keeps_its_exit_code(run, config, monkeypatch):
    def leave(*args: object) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(TinyModule, "training_step", leave)
    code, out, err = run("fit", "--config", config)
    assert code == 3, err
    assert "Stopped at iteration 0\n" in out


def test_an_error_in_the_model_gives_the_signals_back(run, config, monkeypatch):
    def fail(*args: object) -> None:
        raise ArithmeticError("in the model")

    monkeypatch.setattr(TinyModule, "forward_model", fail)
    code, _, err = run("fit", "--config", config, "--trainer.num_sanity_val_steps=0")
    assert (code, err.splitlines()[-1]) == (1, "ArithmeticError: in the model")


def test_in_the_check_before_training_it_ends_at_once(run, config, monkeypatch):
    step = TinyModule.validation_step

    def validation_step(self, batch, batch_idx):
        if self.trainer.sanity_checking:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TinyModule, "validation_step", validation_step)
    code, out, err = run("fit", "--config", config)
    assert code == 143, err
    assert "Iteration" not in out


@pytest.mark.parametrize("command", ["test", "validate"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_an_evaluation_ends_it(run, config, sessions, monkeypatch, command, number):
    assert run("fit", "--config", config, "--trainer.max_steps=5")[0] == 0
    original = TinyModule.forward_model

    def interrupted(self, batch):
        os.kill(os.getpid(), number)
        return original(self, batch)

    monkeypatch.setattr(TinyModule, "forward_model", interrupted)
    code, out, err = run(command, "--ckpt_path", sessions()[0])
    assert code == 128 + number
    assert "Traceback" not in out + err


def ignore(number: int, request: pytest.FixtureRequest) -> None:
    """As `nohup` starts a program, and a shell script one in its background."""
    before = signal.signal(number, signal.SIG_IGN)
    request.addfinalizer(lambda: signal.signal(number, before))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(run, config, send, request, number):
    ignore(number, request)
    send(in_iteration(7), number)
    code, out, err = run("fit", "--config", config, "--trainer.max_steps=8")
    assert code == 0, err
    assert "Finished at iteration 8\n" in out
    assert signal.getsignal(number) == signal.SIG_IGN


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_an_evaluation_goes_on_at_a_sigterm_that_was_ignored(
    run, half, monkeypatch, request, command
):
    ignore(signal.SIGTERM, request)
    original = TinyModule.forward_model

    def interrupted(self, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(TinyModule, "forward_model", interrupted)
    code, _, err = run(command, "--ckpt_path", half)
    assert code == 0, err


@pytest.mark.long
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGTERM, signal.SIGUSR1)),
    ],
)
def test_a_signal_to_the_whole_process_group_ends_it_saved(config, sessions, number):
    """Data workers and the process that writes log.txt are in the group."""
    flags = ("--data.n_workers=2", "--trainer.max_steps=100000")
    fork = number != signal.SIGINT  # a Ctrl-C is tried on a Python that was started
    process = start_process("fit", "--config", config, *flags, start_new_session=True, fork=fork)
    assert any("Iteration     12/" in line for line in iter(process.stdout.readline, ""))
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    stopped = re.search(rf"Stopped by {number.name} at iteration (\d+)\n", out)
    assert last(sessions()[0])["global_step"] == int(stopped[1])
    assert stopped[0] in (sessions()[0] / "log.txt").read_text()


def test_lightning_still_asks_about_sigterm_where_it_is_told_not_to():
    # Private to Lightning: StopOnSignal replaces it by nothing.
    loop = pl.Trainer(logger=False, accelerator="cpu").fit_loop.epoch_loop
    source = inspect.getsource(type(loop).advance)
    assert callable(loop._broadcast_sigterm_tensor)
    assert source.count("self._broadcast_sigterm_tensor()") == 1


# Under SLURM ------------------------------------------------------------------------------------


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """What `sbatch` sets for a job of one process, and a `scontrol` that notes what it is asked."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}")
    variables = {"JOB_ID": "4711", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in {**variables, "JOB_NAME": "train", "NODELIST": "127.0.0.1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return tmp_path / "asked"


def test_a_job_that_is_told_of_its_end_is_queued_again_and_goes_on_bitwise(
    run, config, sessions, send, slurm, monkeypatch
):
    assert run("fit", "--config", config)[0] == 0
    expected = result(sessions()[0])
    shutil.rmtree(sessions()[0])
    send(in_iteration(7), signal.SIGUSR1)
    code, out, err = run("fit", "--config", config)
    assert code == 128 + signal.SIGUSR1, err
    assert slurm.read_text() == "requeue 4711\n"
    assert "Job 4711 is queued again and will go on with this session\n" in out
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    code, out, err = run("fit", "--config", config)
    assert code == 0, err
    [session] = sessions()
    assert f"Going on with {session} after iteration 7\n" in out
    assert same(result(session), expected)
    # A script of several runs meets those again that had ended.
    code, out, err = run("fit", "--config", config)
    assert (code, err) == (0, "")
    assert "nothing left to do" in out
    assert len(sessions()) == 1


def test_of_several_sessions_of_a_job_the_one_that_has_come_furthest_goes_on(
    run, config, sessions, send, slurm, monkeypatch
):
    send(in_iteration(7), signal.SIGUSR1)
    assert run("fit", "--config", config)[0] == 128 + signal.SIGUSR1
    [furthest] = sessions()
    nearer, empty = (furthest.with_name(f"{furthest.name}_{n}") for n in (2, 3))
    send(in_iteration(3), signal.SIGUSR1)
    assert run("fit", "--config", config)[0] == 128 + signal.SIGUSR1
    next(path for path in sessions() if path != furthest).rename(nearer)
    shutil.copytree(furthest, empty, ignore=shutil.ignore_patterns("checkpoints"))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    code, out, err = run(
        "fit",
        "--config",
        config,
    )
    assert code == 0, err
    assert out.startswith(f"Going on with {furthest} after iteration 7\n")
    assert {*sessions()} == {furthest, nearer, empty}
    assert "nothing left to do" in run("fit", "--config", config)[1]


def test_a_job_that_is_queued_again_before_it_had_a_session_starts_one(
    run, config, sessions, slurm, monkeypatch
):
    assert run("fit", "--config", config, "--tag=another")[0] == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run("fit", "--config", config)[0] == 0
    assert [path.name.split("_")[-1] for path in sessions()] == ["another", "tiny"]


def test_an_array_job_asks_for_its_own_task(run, config, send, slurm, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4700")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "11")
    send(in_iteration(7), signal.SIGUSR1)
    assert run("fit", "--config", config)[0] == 138
    assert slurm.read_text() == "requeue 4700_11\n"


def test_other_signals_and_no_slurm_ask_for_nothing(run, config, send, slurm, monkeypatch):
    send(in_iteration(7), signal.SIGTERM)
    assert run("fit", "--config", config)[0] == 143
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.delenv("SLURM_NTASKS")
    send(in_iteration(7), signal.SIGUSR1)
    assert run("fit", "--config", config)[0] == 138
    assert not slurm.exists()
