"""The same images, on the device from the start, and augmented there."""

from typing import Any

import torch
from torch import Tensor

from lightning_trainer import random_crop_and_flip
from projects.cifar import CifarData, Images


class ImagesOnDevice(Images):
    """A batch says only which images it has: `FastCifarData` takes them where they are."""

    def get_batch(self, indices: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        return {"index": indices, "seed": seeds}


class FastCifarData(CifarData):
    """CIFAR-10 whose images are on the device, the only copy of them.

    Args:
        padding: Pixels by which a training image is moved at most, mirrored at its borders.
        flips: Whether half of the training images are mirrored.
    """

    def __init__(self, padding: int = 2, flips: bool = True, n_workers: int = 0, **kwargs) -> None:
        super().__init__(n_workers=n_workers, **kwargs)
        self.padding, self.flips = padding, flips

    def create_data(self) -> None:
        super().create_data()
        device = self.trainer.strategy.root_device
        val_is_test = self.val_dataset is self.test_dataset
        self.train_dataset = on_device(self.train_dataset, device)
        self.test_dataset = self.predict_dataset = on_device(self.test_dataset, device)
        self.val_dataset = self.test_dataset if val_is_test else on_device(self.val_dataset, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> dict[str, Tensor]:
        trainer = self.trainer
        data = self.test_dataset if trainer.testing or trainer.predicting else self.val_dataset
        if trainer.training:
            data = self.train_dataset
        images = data.images.index_select(0, batch["index"])
        if trainer.training:
            seeds = batch["seed"]
            images = random_crop_and_flip(images, seeds, self.padding, "reflect", self.flips)
        return {"image": images, "label": data.labels.index_select(0, batch["index"])}


def on_device(data: Images, device: torch.device) -> ImagesOnDevice:
    return ImagesOnDevice(data.images.to(device), data.labels.to(device))
