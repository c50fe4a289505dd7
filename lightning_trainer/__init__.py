"""A thin layer over PyTorch Lightning: write data and model in a few hooks, the rest exists."""

from lightning_trainer.data import BaseDataModule
from lightning_trainer.images import random_crop_and_flip
from lightning_trainer.module import BaseModule

__all__ = ["BaseDataModule", "BaseModule", "random_crop_and_flip"]
