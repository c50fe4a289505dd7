"""Ctrl-C and its kin end a run after the iteration, with all of it saved."""

import os
import re
import signal
from collections.abc import Callable

import lightning.pytorch as pl
import pytest
import torch
from conftest import TinyModule
from test_exact_restart import result, same

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
    for number, k in zip(SIGNALS, (1, 7, 10), strict=True):
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


def test_within_a_validation_it_ends_at_once_and_goes_on_with_all_of_it(
    run, config, sessions, send
):
    assert run("fit", "--config", config)[0] == 0
    expected = result(sessions()[0])
    send(in_validation(10, batch=1), signal.SIGINT)
    code, out, _ = run("fit", "--config", config)
    session = sessions()[-1]
    assert (code, out.count("Val loss"), last(session)["global_step"]) == (130, 1, 10)
    # The validation that the run goes on with is stopped as well, and the next one comes through.
    send(in_validation(10, batch=0), signal.SIGTERM)
    code, out, _ = run("fit", "--ckpt_path", session)
    assert (code, out.count("Val loss"), last(session)["global_step"]) == (143, 0, 10)
    code, out, err = run("fit", "--ckpt_path", session)
    assert code == 0, err
    assert out.count("Val loss") == 4
    assert same(result(session), expected)


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
