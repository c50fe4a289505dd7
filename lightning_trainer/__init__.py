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
    from lightning_trainer.report.flops import ReportFlops

__version__ = "0.1.0"  # of the wheel too: pyproject.toml reads it from here

__all__ = [
    "AverageWeights",
    "BaseDataModule",
    "BaseModule",
    "ReportFlops",
    "ShowMistakes",
    "draw_predictions",
    "random_crop_and_flip",
    "read_image",
    "read_images",
]

_MODULES = {
    "AverageWeights": "lightning_trainer.checkpoints.averaging",
    "BaseDataModule": "lightning_trainer.base.data",
    "BaseModule": "lightning_trainer.base.module",
    "ReportFlops": "lightning_trainer.report.flops",
    "ShowMistakes": "lightning_trainer.images.mistakes",
    "draw_predictions": "lightning_trainer.images.predictions",
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
