"""Between two log lines no step waits for the GPU; what does wait is found by the same test."""

from collections import Counter

import lightning.pytorch as pl
import pytest
import torch
from card import HAS_CARD, ON, NoSync, knows, needs_card
from conftest import TinyModule
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

import lightning_trainer
from lightning_trainer import BaseModule

pytestmark = pytest.mark.gpu

N_STEPS, EVERY = (100, 50) if HAS_CARD else (20, 10)
RUN = (
    f"--trainer.max_steps={N_STEPS}",
    f"--trainer.log_every_n_steps={EVERY}",
    "--trainer.val_check_interval=1000",
    "--save_minutes=1000",
    "--trainer.callbacks+=card.NoSync",
    ON,
)
NO_PICTURES = "--model.vis_iterations=0"
CIFAR = ("--model=projects.cifar.CifarModule", NO_PICTURES, "--data=card.RandomImages")
FAST = (
    "--model=projects.cifar_fast.FastCifarModule",
    NO_PICTURES,
    "--data=card.RandomImagesOnDevice",
    "--trainer.precision=bf16-mixed",
)
DIGITS = (
    "--model=projects.digits.DigitsModule",
    NO_PICTURES,
    "--data=projects.digits.DigitsData",
)
AVERAGE = (
    "--trainer.callbacks+=lightning_trainer.AverageWeights",
    "--trainer.callbacks.decay=0.9",
)
SETTINGS = {
    "digits": DIGITS,
    "cifar": CIFAR,
    "cifar, 2 workers": (*CIFAR, "--data.n_workers=2"),
    "cifar_fast": FAST,
    "bf16": (*CIFAR, "--trainer.precision=bf16-mixed", "--model.channels_last=true"),
    "16-mixed": (*CIFAR, "--trainer.precision=16-mixed"),
    "accumulated": (*CIFAR, "--trainer.accumulate_grad_batches=2"),
    "clipped": (*CIFAR, "--trainer.gradient_clip_val=1"),
    "two metrics": ("--model=test_gpu_waits.TwoMetrics",),
    "averaged weights": (*DIGITS, *AVERAGE),
    "flops": (*CIFAR, "--trainer.callbacks+=lightning_trainer.ReportFlops"),
}


class TwoMetrics(TinyModule):
    def create_metrics(self) -> None:
        kinds = {"accuracy": MulticlassAccuracy, "f1": MulticlassF1Score}
        metrics = {
            name: kind(2, average="micro", validate_args=False) for name, kind in kinds.items()
        }
        self.train_metrics = MetricCollection(metrics)
        self.val_metrics = self.train_metrics.clone()


class MacroMetric(TinyModule):
    def create_metrics(self) -> None:
        self.train_metrics = MulticlassAccuracy(2, average="macro", validate_args=False)
        self.val_metrics = self.train_metrics.clone()


class Reads(TinyModule):
    """Reads its loss in each step, as one does to print it."""

    def forward_loss(self, batch, output):
        loss = super().forward_loss(batch, output)
        loss.item()
        return loss


class Profile(pl.Callback):
    """The names of all events of twenty steps between two lines, on the host and the device."""

    names: Counter[str]

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        n = trainer.global_step + 1
        if n == EVERY + 3:
            activities = [torch.profiler.ProfilerActivity.CPU]
            activities += [torch.profiler.ProfilerActivity.CUDA] * HAS_CARD
            self.profiler = torch.profiler.profile(activities=activities)
            self.profiler.start()
            self.steps = torch.profiler.record_function("the steps")
            self.steps.__enter__()
        if n == min(EVERY + 23, N_STEPS - 1):
            self.steps.__exit__(None, None, None)
            self.profiler.stop()
            Profile.names = self._within()

    def _within(self) -> Counter[str]:
        """Without what starting and stopping the profiler does itself."""
        events = self.profiler.events()
        [steps] = [e for e in events if e.name == "the steps" and "CPU" in str(e.device_type)]
        at = steps.time_range
        return Counter(e.name for e in events if at.start <= e.time_range.start <= at.end)


def skip_what_is_not_there(flags: tuple[str, ...]) -> None:
    if AVERAGE[0] in flags and not hasattr(lightning_trainer, "AverageWeights"):
        pytest.skip("not available: AverageWeights")
    if "--trainer.precision=16-mixed" in flags:
        if not HAS_CARD:
            pytest.skip("float16 needs a CUDA device")
        if not knows(BaseModule, "fused"):
            pytest.skip("not available: --model.fused")


@pytest.mark.parametrize("flags", SETTINGS.values(), ids=SETTINGS.keys())
def test_no_step_between_two_lines_waits_for_the_device(run, config, flags):
    skip_what_is_not_there(flags)
    NoSync.n_armed = 0
    code, out, err = run("fit", "--config", config, *flags, *RUN)
    assert code == 0, err
    assert NoSync.n_armed >= N_STEPS - 10
    assert f"Iteration {N_STEPS:6d}/{N_STEPS}" in out


# The debug mode sees neither copies from pageable memory nor what torch.distributed does.
@pytest.mark.parametrize("name", ["digits", "cifar", "cifar_fast", "averaged weights", "flops"])
def test_the_profiler_sees_no_wait_and_no_copy_to_the_host(run, config, name):
    skip_what_is_not_there(SETTINGS[name])
    profile = "--trainer.callbacks+=test_gpu_waits.Profile"
    without = [flag for flag in RUN if "NoSync" not in flag]
    code, _, err = run("fit", "--config", config, *SETTINGS[name], *without, profile)
    assert code == 0, err
    waits = [n for n in Profile.names if "Synchronize" in n or "DtoH" in n or "Pageable" in n]
    assert not waits
    if HAS_CARD:
        assert any("LaunchKernel" in n for n in Profile.names), Profile.names


@needs_card
@pytest.mark.parametrize(
    "flags",
    [
        ("--model=test_gpu_waits.Reads",),
        ("--model=test_gpu_waits.MacroMetric",),
        (*CIFAR, "--trainer.precision=16-mixed", "--model.fused=false"),
    ],
    ids=["reads its loss", "macro metric", "16-mixed unfused"],
)
def test_what_does_wait_is_found(run, config, flags):
    skip_what_is_not_there(flags)
    code, _, err = run("fit", "--config", config, *flags, *RUN)
    assert code == 1
    assert "called a synchronizing CUDA operation" in err
