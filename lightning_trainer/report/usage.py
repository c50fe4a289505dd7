"""MeasureUse: the memory, and where NVIDIA's library is installed the GPU, that a run has used."""

import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_trainer.base.results import in_training
from lightning_trainer.run.device import on_gpu
from lightning_trainer.run.state import RunCallback

_GB = 1e9
_J_PER_KWH = 3.6e6


class MeasureUse(RunCallback):
    """Keeps `run.used` up to date: peaks of this start, in the first process and on its device.

    What a GPU does is asked before each validation, where it has just trained. TensorBoard gets the
    numbers after it, as `usage/NAME`.
    """

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._gpu: _Gpu | None = None
        self._percents: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if on_gpu(trainer):
            self._gpu = _Gpu.find(trainer.strategy.root_device)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._gpu and in_training(trainer):
            self._percents.append(self._gpu.percent())

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if in_training(trainer) and trainer.is_global_zero:
            self._measure(trainer)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    numbers = {f"usage/{name}": value for name, value in self.run.used.items()}
                    logger.log_metrics(numbers, trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._measure(trainer)

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        with suppress(RuntimeError):  # of a GPU that has failed
            self._measure(trainer)

    def _measure(self, trainer: pl.Trainer) -> None:
        used = {"memory_gb": peak_memory() / _GB}
        if on_gpu(trainer):
            device = trainer.strategy.root_device
            used["gpu_memory_gb"] = torch.cuda.max_memory_reserved(device) / _GB
        if self._percents:
            used["gpu_percent"] = sum(self._percents) / len(self._percents)
        if self._gpu and (joules := self._gpu.joules()):
            used["gpu_kwh"] = joules / _J_PER_KWH
        self.run.used = {name: round(value, 4) for name, value in used.items()}


def peak_memory() -> float:
    """Bytes that this process has had in memory at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # getrusage(2) of each system


def describe_use(used: Mapping[str, float]) -> str:
    """E.g. "1.2 GB, GPU 3.4 GB (87% busy, 0.120 kWh)"."""
    text = f"{used['memory_gb']:.1f} GB"
    if "gpu_memory_gb" in used:
        more = [f"{used['gpu_percent']:.0f}% busy"] if "gpu_percent" in used else []
        more += [f"{used['gpu_kwh']:.3f} kWh"] if "gpu_kwh" in used else []
        text += f", GPU {used['gpu_memory_gb']:.1f} GB" + (f" ({', '.join(more)})" if more else "")
    return text


class _Gpu:
    """What NVIDIA's library tells of one GPU; nothing where it fails."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle
        self._before = self._energy()

    @classmethod
    def find(cls, device: torch.device) -> "_Gpu | None":
        """None without the package nvidia-ml-py, or where the GPU is not NVIDIA's."""
        with suppress(Exception):
            import pynvml

            pynvml.nvmlInit()
            # Not by number: CUDA_VISIBLE_DEVICES changes torch's.
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid.encode()))
        return None

    def percent(self) -> float:
        """Of the library's last sampling period, at most a second: the time in which it worked."""
        with suppress(self._library.NVMLError):
            return float(self._library.nvmlDeviceGetUtilizationRates(self._handle).gpu)
        return 0.0

    def joules(self) -> float:
        """The energy since this object was made; 0 where the GPU does not count it."""
        before, now = self._before, self._energy()
        return 0.0 if before is None or now is None else (now - before) / 1000

    def _energy(self) -> float | None:
        with suppress(self._library.NVMLError):
            return float(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        return None
