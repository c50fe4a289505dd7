"""What decides the last bits of a run beside its settings: a restart tells what has changed."""

from collections.abc import Iterable
from typing import Any

import lightning
import lightning.pytorch as pl
import torch

from lightning_trainer.base.compiling import compile_mode

_NAMES = {
    "train_loader": "the class of the training loader",
    "val_loader": "the class of the validation loader",
    "torch": "torch",
    "lightning": "lightning",
    "device": "the device",
    "precision": "`trainer.precision`",
    "matmul_precision": "the precision of float32 matrix products",
    "compile": "`model.compile`",
    "threads": "the number of torch's threads",
    "vectors": "the processor's set of vector instructions",
    "cuda": "CUDA",
    "cudnn": "cuDNN",
}


def conditions(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    """The conditions of this process, as plain types; those of the CPU or those of the GPU."""
    device = trainer.strategy.root_device
    on_gpu = device.type == "cuda"
    backends: Any = torch.backends
    of_device = {
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": backends.cudnn.version(),
    }
    of_cpu = {"threads": torch.get_num_threads(), "vectors": backends.cpu.get_cpu_capability()}
    return {
        "train_loader": _classes(trainer.train_dataloader),
        "val_loader": _classes(trainer.val_dataloaders),
        "torch": str(torch.__version__),
        "lightning": lightning.__version__,
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "precision": str(trainer.precision),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "compile": compile_mode(pl_module),
        **(of_device if on_gpu else of_cpu),
    }


def changed_conditions(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A text for each that differs; one that an older version did not keep can't be compared."""
    return [
        f"{what} is {now[name]} instead of {before[name]}"
        for name, what in _NAMES.items()
        if name in before and name in now and before[name] != now[name]
    ]


class ChangedBuffers:
    """Finds the buffers that no checkpoint holds and that training changes.

    Those of a module that has them by `register_buffer(..., persistent=False)`. Most are constants,
    such as a mask, and a restart makes them again.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = [*names]  # those that have changed
        self._at_start: dict[str, torch.Tensor] = {}

    def begin(self, pl_module: pl.LightningModule, state_dict: Any) -> None:
        """Keeps copies of those that `state_dict`, a checkpoint's weights, does not have."""
        self._at_start = {
            name: buffer.detach().cpu().clone()
            for name, buffer in pl_module.named_buffers()
            if name not in state_dict and name not in self.names
        }

    def look(self, pl_module: pl.LightningModule) -> None:
        buffers = dict(pl_module.named_buffers())
        for name in [*self._at_start]:
            if name in buffers and not torch.equal(buffers[name].cpu(), self._at_start[name]):
                self.names.append(name)
                del self._at_start[name]


def _classes(loader: Any) -> Any:
    """The class of a loader, or of each in a collection."""
    if isinstance(loader, dict):
        return {str(name): _classes(each) for name, each in loader.items()}
    if isinstance(loader, list | tuple):
        return [_classes(each) for each in loader]
    return f"{type(loader).__module__}.{type(loader).__qualname__}"
