"""A thin layer over PyTorch Lightning: write data and model in a few hooks, the rest exists."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_trainer.callbacks.flops import ReportFlops
    from lightning_trainer.callbacks.mistakes import ShowMistakes
    from lightning_trainer.data import BaseDataModule
    from lightning_trainer.images import random_crop_and_flip
    from lightning_trainer.module import BaseModule
    from lightning_trainer.predictions import draw_predictions

__all__ = [
    "BaseDataModule",
    "BaseModule",
    "ReportFlops",
    "ShowMistakes",
    "draw_predictions",
    "random_crop_and_flip",
]

_MODULES = {
    "BaseDataModule": "lightning_trainer.data",
    "BaseModule": "lightning_trainer.module",
    "ReportFlops": "lightning_trainer.callbacks.flops",
    "ShowMistakes": "lightning_trainer.callbacks.mistakes",
    "draw_predictions": "lightning_trainer.predictions",
    "random_crop_and_flip": "lightning_trainer.images",
}


def __getattr__(name: str) -> Any:
    """Imports a public name where it is used: what only looks at sessions needs no torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
