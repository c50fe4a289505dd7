"""What fails on a GPU ends the run with its cause, and the run goes on afterwards."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from card import HAS_CARD, ON, NanModule, NoSync, needs_card
from conftest import run_process, start_process
from lightning_utilities.core.apply_func import apply_to_collection
from restarts import result, same

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("broken", ["memory", "index"])
def test_a_step_that_fails_is_told_and_the_run_goes_on_without_the_fault(config, sessions, broken):
    fails = ("--model=card.FailsModule", f"--model.broken={broken}", "--save_minutes=0")
    started_s = time.monotonic()
    process = start_process("fit", "--config", config, *fails, ON, fork=not HAS_CARD)
    lines = iter(process.stdout.readline, "")
    assert any("Iteration      4/23" in line for line in lines), process.stderr.read()
    failed_s = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, time.monotonic() - failed_s < 15) == (1, True), err
    assert failed_s - started_s < 60
    cause = err.rstrip().splitlines()[-1].lower()
    words = {"memory": ("memory",), "index": ("assert", "out of range", "out of bounds", "index")}
    assert any(word in err.lower() for word in words[broken]), err
    assert "error" in cause or "assert" in cause or "memory" in cause, cause
    [session] = sessions()
    assert json.loads((session / "run.json").read_text())["state"] == "failed"
    saved = torch.load(session / "checkpoints/last.ckpt", map_location="cpu")["global_step"]
    assert 1 <= saved <= 6
    again = run_process("fit", "--ckpt_path", session, "--model.broken=", fork=not HAS_CARD)
    assert again.returncode == 0, again.stderr


# The device lags up to 20 steps of 0.1 s behind the host: no line comes before.
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_kernels_run_saves_and_the_run_goes_on_bitwise(config, sessions, number):
    slow = ("--model=card.SlowModule", "--trainer.log_every_n_steps=20")
    steps = ("--trainer.max_steps=60", "--trainer.val_check_interval=30", "--data.n_samples=2000")
    flags = ("fit", "--config", config, *slow, *steps, ON, "--trainer.deterministic=true")
    process = start_process(*flags, fork=not HAS_CARD, stderr=subprocess.STDOUT)
    lines = iter(process.stdout.readline, "")
    assert any("Iteration     20/60" in line for line in lines)
    time.sleep(0.3 if HAS_CARD else 0)
    started_s = time.monotonic()
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    if process.returncode == 0 and not HAS_CARD:
        pytest.skip("the CPU had ended before the signal")
    assert process.returncode == 128 + number, out
    assert time.monotonic() - started_s < 2 + 20 * 0.1 + 3  # the last: the end of the process
    [session] = sessions()
    go_on = run_process("fit", "--ckpt_path", session, fork=not HAS_CARD)
    assert go_on.returncode == 0, go_on.stderr
    whole = run_process(*flags, fork=not HAS_CARD)
    assert whole.returncode == 0, whole.stderr
    assert same(*(on_cpu(session) for session in sessions()))


def on_cpu(session: Path) -> dict:
    return apply_to_collection(result(session), torch.Tensor, torch.Tensor.cpu)


NAN = ("--model=card.NanModule", "--trainer.log_every_n_steps=10", ON)
BETWEEN_LINES = ("--trainer.val_check_interval=1000", "--trainer.callbacks+=card.NoSync")
PRECISIONS = ["32-true", pytest.param("16-mixed", marks=needs_card)]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_loss_that_is_no_number_is_noticed_at_the_line_without_a_wait(
    run, config, sessions, precision
):
    NanModule.spoilt, NoSync.n_armed = False, 0
    flags = (*NAN, *BETWEEN_LINES, f"--trainer.precision={precision}", "--trainer.max_steps=30")
    code, _, err = run("fit", "--config", config, *flags)
    assert code == 1
    assert NoSync.n_armed >= 10
    assert "at iteration 20. The last good checkpoint is" in err.splitlines()[-1]
    assert f"{sessions()[0]}/checkpoints/last.ckpt" in err


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_skipped_one_goes_back_to_the_checkpoint(run, config, sessions, precision):
    NanModule.spoilt = False
    flags = (*NAN, f"--trainer.precision={precision}", "--on_non_finite=skip")
    code, out, err = run("fit", "--config", config, *flags, "--trainer.max_steps=30")
    assert code == 0, err
    assert "(1 of 3 times)" in out
    weights = on_cpu(sessions()[0])["weights"].values()
    assert all(weight.isfinite().all() for weight in weights)
    assert "Finished at iteration 30" in out
