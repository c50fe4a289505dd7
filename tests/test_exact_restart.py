"""A run that is killed and goes on gives bitwise what an uninterrupted one gives."""

import os
import signal

import pytest
from conftest import TinyModule, run_process, start_process
from restarts import Killed, copy_at, kill_at, result, same


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "kills"),
    [
        # within epochs of 7 iterations and at their ends, after validations and before them
        (["--save_minutes=0", "--model.schedule=cosine"], [1, 4, 5, 7, 10, 14, 19, 22]),
        pytest.param(
            ["--save_minutes=0", "--model.schedule=cosine"], range(1, 23), marks=pytest.mark.slow
        ),
        (
            ["--save_minutes=0", "--trainer.accumulate_grad_batches=2", "--trainer.max_steps=13"],
            range(1, 13, 3),
        ),
        (["--save_minutes=10", "--model.schedule=plateau"], [6, 12, 19]),
    ],
    ids=[
        "saved after some iterations",
        "saved after every iteration",
        "accumulating gradients",
        "saved after validations only",
    ],
)
def test_killed_after_any_iteration_it_goes_on_bitwise(
    run, config, sessions, monkeypatch, tmp_path, flags, kills
):
    with monkeypatch.context() as patch:
        copy_at(patch, "on_train_batch_end", kills, tmp_path / "killed")
        assert run("fit", "--config", config, *flags)[0] == 0
    expected = result(sessions()[0])
    for k in kills:
        session = tmp_path / "killed" / str(k)
        code, _, err = run("fit", "--ckpt_path", session, "--save_minutes=10")
        assert code == 0, err
        assert same(result(session), expected), f"killed after iteration {k}"


def test_the_number_of_workers_changes_nothing(run, config, sessions, monkeypatch):
    assert run("fit", "--config", config)[0] == 0
    kill_at(monkeypatch, "on_train_batch_end", lambda trainer: trainer.global_step == 9)
    with pytest.raises(Killed):
        run("fit", "--config", config, "--data.n_workers=2", "--save_minutes=0")
    assert run("fit", "--ckpt_path", sessions()[1], "--data.n_workers=1")[0] == 0
    assert same(result(sessions()[1]), result(sessions()[0]))


def test_a_process_killed_by_sigkill_goes_on_bitwise(run, config, sessions):
    # 100 iterations, each of them saved, take long enough to be killed in.
    flags = ["--trainer.max_steps=100", "--trainer.val_check_interval=25", "--save_minutes=0"]
    with start_process("fit", "--config", config, *flags, fork=False) as process:
        lines = iter(process.stdout.readline, "")
        assert any("Iteration     40/100" in line for line in lines)
        process.kill()
    process = run_process("fit", "--ckpt_path", sessions()[0])
    assert process.returncode == 0, process.stderr
    assert "Going on" in process.stdout
    assert run("fit", "--config", config, *flags)[0] == 0
    assert same(result(sessions()[0]), result(sessions()[1]))


@pytest.mark.long
@pytest.mark.parametrize("at", [5, 20, 23])
def test_stopped_within_a_validation_it_runs_it_again_and_goes_on_bitwise(
    run, config, sessions, monkeypatch, at
):
    assert run("fit", "--config", config)[0] == 0
    original = TinyModule.validation_step
    seen: list[int] = []

    def interrupted(self, batch, batch_idx):
        if self.global_step == at and not self.trainer.sanity_checking:
            seen.append(batch_idx)
            if seen == [0, 1]:
                os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TinyModule, "validation_step", interrupted)
    assert run("fit", "--config", config)[0] == 128 + signal.SIGINT
    code, _, err = run("fit", "--ckpt_path", sessions()[1])
    assert code == 0, err
    assert seen == [0, 1, 0, 1, 2]
    assert same(result(sessions()[1]), result(sessions()[0]))


class LoggingModule(TinyModule):
    """A project that logs a number of each batch by itself."""

    def training_step(self, batch, batch_idx):
        step = super().training_step(batch, batch_idx)
        self.log("train/extra", step["loss"].detach())
        return step


def test_what_a_project_logs_itself_is_the_same_after_a_kill_within_a_validation(
    run, config, sessions, monkeypatch
):
    flags = ("--model=test_exact_restart.LoggingModule", "--save_minutes=0")
    assert run("fit", "--config", config, *flags)[0] == 0
    kill_at(monkeypatch, "on_validation_start", lambda trainer: trainer.global_step == 10)
    with pytest.raises(Killed):
        run("fit", "--config", config, *flags)
    assert run("fit", "--ckpt_path", sessions()[1])[0] == 0
    expected, got = (result(session) for session in sessions())
    assert same(got, expected)
    assert "train/extra" in expected["numbers"][0]
