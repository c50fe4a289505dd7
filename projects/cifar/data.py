"""CIFAR-10, or any folder of images, in memory."""

from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from lightning_trainer import BaseDataModule, read_image, read_images


class Images(torch.utils.data.Dataset):
    """Images (N, 3, H, W) as uint8 with their labels (N,)."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def get_batch(self, indices: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        images, labels = (of.index_select(0, indices) for of in (self.images, self.labels))
        return {"image": images, "label": labels}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "label": self.labels[index]}


class CifarData(BaseDataModule):
    """CIFAR-10 as torchvision downloads it, or a folder with `train/CLASS/*` and `test/CLASS/*`.

    As in the guide the test images serve as validation images.

    Args:
        root: Folder of the data; its layout is recognised.
        image_size: Height and width that images of a folder are resized to, in pixels.
        n_held_out: Training images that serve as validation images instead: to choose settings by.
    """

    def __init__(
        self, root: str = "data/cifar10", image_size: int = 32, n_held_out: int = 0, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.image_size, self.n_held_out = Path(root), image_size, n_held_out

    def prepare_data(self) -> None:
        if self._is_image_folder():
            return
        try:
            CIFAR10(str(self.root), download=True)
        except (URLError, OSError, RuntimeError) as ex:
            raise FileNotFoundError(
                f"`data.root` is '{self.root}': there is no CIFAR-10 in it and it can't be "
                f"downloaded ({ex}). Either run once where there is a network, or put images into "
                f"{self.root}/train/CLASS/* and {self.root}/test/CLASS/*"
            ) from ex

    def create_data(self) -> None:
        read = self._read_folder if self._is_image_folder() else self._read_cifar
        self.train_dataset, classes = read("train")
        self.test_dataset, test_classes = read("test")
        if classes != test_classes:
            raise FileNotFoundError(
                f"the classes in {self.root}/train and {self.root}/test differ "
                f"({sorted(set(classes) ^ set(test_classes))}): make the same folders in both"
            )
        self.classes = classes
        self.val_dataset = self.predict_dataset = self.test_dataset
        if self.n_held_out:
            self._hold_out()

    def create_predict_data(self, path: str) -> None:
        """Takes all images in a folder and below it, by their names."""
        ends = tuple(IMG_EXTENSIONS)
        files = sorted(f for f in Path(path).rglob("*") if f.name.lower().endswith(ends))
        if not files:
            raise FileNotFoundError(f"`predict_data` is {path!r}, where there are no images")
        resize = v2.Resize([self.image_size, self.image_size])
        names = [str(file.relative_to(path)) for file in files]
        images = torch.stack([resize(read_image(str(file))) for file in files])
        self.predict_dataset = [
            {"image": image, "name": name} for image, name in zip(images, names, strict=True)
        ]

    def _hold_out(self) -> None:
        images, labels = self.train_dataset.images, self.train_dataset.labels
        n = len(labels) - self.n_held_out
        if not 0 < n < len(labels):
            raise ValueError(
                f"`data.n_held_out` is {self.n_held_out}: it must be between 0 and the number of "
                f"training images, {len(labels)}"
            )
        self.train_dataset = Images(images[:n], labels[:n])
        self.val_dataset = Images(images[n:], labels[n:])

    def _is_image_folder(self) -> bool:
        return (self.root / "train").is_dir()

    def _read_cifar(self, split: str) -> tuple[Images, list[str]]:
        cifar = CIFAR10(str(self.root), train=split == "train")
        images = torch.from_numpy(cifar.data).permute(0, 3, 1, 2).contiguous()
        return Images(images, torch.tensor(cifar.targets)), cifar.classes

    def _read_folder(self, split: str) -> tuple[Images, list[str]]:
        try:
            images, labels, classes = read_images(self.root / split, self.image_size)
        except FileNotFoundError as ex:
            raise FileNotFoundError(
                f"`data.root` is '{self.root}', which needs images in {split}/CLASS/*: {ex}"
            ) from ex
        # Decoding drew one number once. Without it a seed would give other weights than before.
        torch.empty((), dtype=torch.int64).random_()
        # Mixed, as CIFAR-10 itself is: in a folder's order the first batches are all of one class.
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        return Images(images.index_select(0, order), labels[order]), classes
