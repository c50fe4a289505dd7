"""A training workflow on PyTorch Lightning: write data and model in a few hooks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_trainer.base.data import BaseDataModule
    from lightning_trainer.base.module import BaseModule
    from lightning_trainer.checkpoints.averaging import AverageWeights
    from lightning_trainer.images.augmentation import random_crop_and_flip
    from lightning_trainer.images.in_memory import read_image, read_images
    from lightning_trainer.images.mistakes import ShowMistakes
    from lightning_trainer.images.predictions import draw_predictions
    from lightning_trainer.python.fitting import fit, load
    from lightning_trainer.python.run_error import RunError
    from lightning_trainer.python.trained_session import TrainedSession
    from lightning_trainer.report.flops import ReportFlops
    from lightning_trainer.report.keep_report import KeepReport

__version__ = "0.1.0"  # of the wheel too: pyproject.toml reads it from here

__all__ = [
    "AverageWeights",
    "BaseDataModule",
    "BaseModule",
    "KeepReport",
    "ReportFlops",
    "RunError",
    "ShowMistakes",
    "TrainedSession",
    "draw_predictions",
    "fit",
    "load",
    "random_crop_and_flip",
    "read_image",
    "read_images",
]

_MODULES = {
    "AverageWeights": "lightning_trainer.checkpoints.averaging",
    "BaseDataModule": "lightning_trainer.base.data",
    "BaseModule": "lightning_trainer.base.module",
    "KeepReport": "lightning_trainer.report.keep_report",
    "ReportFlops": "lightning_trainer.report.flops",
    "RunError": "lightning_trainer.python.run_error",
    "ShowMistakes": "lightning_trainer.images.mistakes",
    "TrainedSession": "lightning_trainer.python.trained_session",
    "draw_predictions": "lightning_trainer.images.predictions",
    "fit": "lightning_trainer.python.fitting",
    "load": "lightning_trainer.python.fitting",
    "random_crop_and_flip": "lightning_trainer.images.augmentation",
    "read_image": "lightning_trainer.images.in_memory",
    "read_images": "lightning_trainer.images.in_memory",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is used: commands about sessions need no torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
