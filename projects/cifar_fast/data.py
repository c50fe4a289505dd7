"""The same images, on the device from the start, and augmented there."""

from typing import Any

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
    """

    def __init__(self, padding: int = 2, n_workers: int = 0, **kwargs) -> None:
        super().__init__(n_workers=n_workers, **kwargs)
        self.padding = padding

    def create_data(self) -> None:
        super().create_data()
        device = self.trainer.strategy.root_device
        for name in ("train_dataset", "val_dataset"):
            data = getattr(self, name)
            setattr(self, name, ImagesOnDevice(data.images.to(device), data.labels.to(device)))
        self.test_dataset = self.predict_dataset = self.val_dataset

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> dict[str, Tensor]:
        training = self.trainer.training
        data = self.train_dataset if training else self.val_dataset
        images = data.images.index_select(0, batch["index"])
        if training:
            images = random_crop_and_flip(images, batch["seed"], self.padding, fill="reflect")
        return {"image": images, "label": data.labels.index_select(0, batch["index"])}
