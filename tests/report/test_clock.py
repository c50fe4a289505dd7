"""Figures on a GPU, shown by one whose queue follows a script: no card is needed."""

import time
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import scripted
import torch
from scripted import script
from test_progress import lines, rows
from test_summary import ADVICE
from torch import Tensor

from lightning_trainer.report import clock, progress, recording
from lightning_trainer.run import device
from lightning_trainer.run.state import LossSum


class Gpu:
    """Does what is enqueued, one after the other, while the host's clock goes on."""

    def __init__(self) -> None:
        self.busy_until_s = self.n_events = self.n_waits = 0
        self.step_s = 0.5
        self.late_s: dict[int, float] = {}  # more for the step of these batches, from 1 on

    def enqueue(self, seconds: float) -> None:
        self.busy_until_s = max(self.busy_until_s, script.now_s) + seconds

    def wait(self, *_) -> None:
        script.now_s = max(self.busy_until_s, script.now_s)
        self.n_waits += 1


gpu = Gpu()


class Event:
    """Behaves like CUDA's: a time is known once the GPU has passed both events."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at_s = None
        gpu.n_events += 1

    def record(self, stream: None) -> None:
        self.at_s = max(gpu.busy_until_s, script.now_s)

    def query(self) -> bool:
        return self.at_s <= script.now_s

    def synchronize(self) -> None:
        script.now_s = max(self.at_s, script.now_s)

    def elapsed_time(self, end: "Event") -> float:
        assert self.query()
        assert end.query()
        return (end.at_s - self.at_s) * 1e3


class GpuModule(scripted.ScriptedModule):
    def forward_model(self, batch: dict[str, Tensor]) -> Tensor:
        number = self.trainer.fit_loop.total_batch_idx + 1
        training = gpu.step_s + gpu.late_s.get(number, 0.0)
        gpu.enqueue(training if self.training else 0.5)
        return super().forward_model(batch)


class MoreWork(pl.Callback):
    """Gives the GPU something to do after each step."""

    def on_train_batch_end(self, *_) -> None:
        gpu.enqueue(0.25)


PROJECT = ("--model=test_clock.GpuModule", "--data=scripted.ScriptedData")


@pytest.fixture
def fit(run, config, sessions, monkeypatch):
    """Runs with the scripted GPU; by default the host needs an eighth of a second for a step."""
    scripted.start(monkeypatch)
    gpu.__init__()
    script.fetch_s, script.transfer_s, script.forward_s, script.step_s = 0.0625, 0.0, 0.0, 0.0625
    script.validation_batch_s = 0.0
    for module in (device, progress):
        monkeypatch.setattr(module, "on_gpu", lambda trainer: True)
    monkeypatch.setattr(recording, "describe_gpus", lambda trainer: {"gpus": ["scripted"]})
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", gpu.wait)
    for name in ("mean", "total"):
        read = getattr(LossSum, name)
        monkeypatch.setattr(LossSum, name, lambda *args, read=read: gpu.wait() or read(*args))

    def fit_(*flags: str, project=PROJECT) -> str:
        code, out, err = run("fit", "--config", config, *project, "--trainer.max_steps=12", *flags)
        assert code == 0, err
        return out

    return fit_


def figures(session) -> dict[int, list[float]]:
    names = ("timing/examples_per_s", "timing/fetch_ms", "timing/update_ms")
    table = rows(session)
    return {step: [float(table[step][name]) for name in names] for step in (4, 8, 12)}


def test_a_fetch_that_the_gpu_does_not_wait_for_takes_no_time(fit, sessions):
    out = fit("--trainer.val_check_interval=100")
    # After a line the GPU is idle: it waits once for the host's fetch of 62.5 ms.
    expected = [16 / 2.0625, 62.5 / 4, 500.0]
    assert figures(sessions()[0]) == {4: [12 / 1.5625, 62.5 / 3, 500.0], 8: expected, 12: expected}
    assert ADVICE not in out


def test_a_fetch_that_the_gpu_waits_for_is_its_wait(fit, sessions):
    script.fetch_s, gpu.step_s = 0.5, 0.125
    out = fit("--trainer.val_check_interval=100")
    # Of the 562.5 ms between two steps the GPU works for 125 ms, 62.5 ms of them in the next fetch.
    # After a line it is idle, and waits for all of the fetch.
    whole = [16 / (0.5 + 3 * 0.4375 + 4 * 0.125), (500 + 3 * 437.5) / 4, 125.0]
    first = [12 / (0.5 + 2 * 0.4375 + 3 * 0.125), (500 + 2 * 437.5) / 3, 125.0]
    assert figures(sessions()[0]) == {4: first, 8: whole, 12: whole}
    assert out.endswith(ADVICE)


def test_a_loader_that_is_made_anew_is_timed_too(fit, sessions):
    script.fetch_s, gpu.step_s = 0.5, 0.125
    fit("--trainer.val_check_interval=100", "--trainer.reload_dataloaders_every_n_epochs=1")
    assert figures(sessions()[0])[8][1:] == [(500 + 3 * 437.5) / 4, 125.0]


def test_what_is_in_the_queue_at_a_pause_is_training_not_validation(fit, sessions):
    out = fit("--trainer.val_check_interval=6", "--save_minutes=1000")
    # At 6 the host is ahead of the GPU. After the validation, as after a line, the GPU is idle.
    assert figures(sessions()[0])[8] == [16 / 2.125, 125 / 4, 500.0]
    # 12 x 0.5 s; 5 x 0.0625 s for fetches at the start, after the first iteration, two lines and a
    # validation; 2 x 1.5 s for validations, 2 x 2 s for checkpoints: 13.3125 s.
    shares = "data 2%, update 41%, validation 23%, checkpoints 30%, other 4%"
    assert f"Total time:    00h00m13s ({shares})\n" in out


def test_what_is_in_the_queue_at_a_checkpoint_is_training(fit, sessions):
    fit("--trainer.val_check_interval=100", "--save_minutes=0")
    for examples_per_s, _, update_ms in figures(sessions()[0]).values():
        assert (examples_per_s, update_ms) == (4 / 0.5625, 500.0)


def test_what_is_in_the_queue_at_the_end_is_training(fit):
    flags = ("--trainer.limit_val_batches=0", "--trainer.enable_checkpointing=false")
    out = fit(*flags, "--trainer.max_steps=10")
    # 9 iterations after the first, and 3 fetches while the GPU is idle
    assert f"Examples/s:    {36 / (9 * 0.5 + 3 * 0.0625):.1f}\n" in out


def test_work_of_the_projects_callbacks_is_no_wait_for_data(fit, sessions):
    fit("--trainer.val_check_interval=100", "--trainer.callbacks+=test_clock.MoreWork")
    assert figures(sessions()[0])[8][1:] == [0.0, 500.0]


def test_with_a_loader_of_the_projects_own_a_fetch_is_all_between_two_steps(fit, sessions):
    script.fetch_s, gpu.step_s = 0.5, 0.125
    own = (PROJECT[0], "--data=scripted.OwnLoaderData")
    fit("--trainer.val_check_interval=6", project=own)
    # Before steps 5, 7 and 8 the batch after theirs is fetched; 6 is the last one of its epoch.
    # What is between steps 6 and 7 also has a validation, and is left out.
    assert figures(sessions()[0])[8] == [16 / (2 * 0.4375 + 0.0625 + 4 * 0.125), 937.5 / 4, 125.0]


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_compiled_model_is_timed_from_its_third_iteration_on(
    fit, sessions, monkeypatch, is_compiled
):
    gpu.late_s = {1: 100.0, 2: 8.0}
    monkeypatch.setattr(progress, "is_compiled", lambda module: is_compiled)
    fit("--trainer.val_check_interval=100")
    update_ms = figures(sessions()[0])[4][2]
    assert update_ms == (2 * 500.0 / 2 if is_compiled else (3 * 500 + 8000) / 3)


@pytest.mark.parametrize("interval", [0, 100_000])
def test_without_lines_events_are_used_again_and_nothing_waits(fit, sessions, interval):
    flags = (f"--trainer.log_every_n_steps={interval}", "--trainer.val_check_interval=10000")
    gpu.step_s = 0.0625
    before = gpu.n_waits
    out = fit(*flags, "--trainer.max_steps=700", "--save_minutes=10000")
    assert lines(out) == "\n"
    assert gpu.n_events <= 2 * 2 * (clock._MOST_PAIRS + 1)
    assert gpu.n_waits - before < 20  # at the start and at the end
    # Of 700 steps the first is left out.
    times = torch.load(sessions()[0] / "checkpoints" / "last.ckpt")["lightning_trainer"]["times"]
    assert times["update_s"] == 699 * 0.0625


def test_pairs_that_the_gpu_has_not_passed_are_not_summed_up(monkeypatch):
    scripted.start(monkeypatch)
    gpu.__init__()
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    events = clock.DeviceEvents()
    for n in range(3 * clock._MOST_PAIRS):
        events.start()
        gpu.enqueue(1.0)
        events.end()
        script.now_s += 0.25 if n < 300 else 4.0
    assert gpu.n_events < 2 * 350
    assert events.total_s() == 3.0 * clock._MOST_PAIRS
    events.clear()
    assert events.total_s() == 0.0


@pytest.mark.gpu
def test_a_real_gpu_tells_its_work_and_its_waits():
    loader = SimpleNamespace(on_fetch=None)
    device_clock = clock.DeviceClock()
    device_clock.listen_to(loader)
    square = torch.ones(1024, 1024, device="cuda")
    square @ square  # loads the kernels
    torch.cuda.synchronize()
    started_s = time.perf_counter()
    for _ in range(3 * clock._MOST_PAIRS):
        loader.on_fetch()
        time.sleep(0.001)
        device_clock.start_step(after_pause=False)
        square @ square
        device_clock.end_step()
    fetch_s, update_s = device_clock.totals_s()
    whole_s = time.perf_counter() - started_s
    assert 0 < update_s < whole_s
    assert fetch_s + update_s == pytest.approx(whole_s, rel=0.05)
    assert len(device_clock._updates._pairs) <= clock._MOST_PAIRS + 1
