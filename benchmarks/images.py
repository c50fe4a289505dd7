"""Crop with padding, flip and normalisation: per sample by torchvision, and of a batch at once.

python benchmarks/images.py
python benchmarks/images.py --folder data/cifar10

The first: CPU time on one thread, without workers, on random images of CIFAR-10's size. The second:
all images of FOLDER/train and FOLDER/test in memory, decoded, and from the file of an earlier one.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from common import alternate, report, spread
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from lightning_trainer import random_crop_and_flip, read_images
from lightning_trainer.base.sampling import ExactSampler, SeededDataset
from lightning_trainer.run.memory import reuse_memory
from projects.cifar import Images, Normalise

N_IMAGES, N_ROUNDS, N_BATCHES = 20_000, 9, 35
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


class PerSample(Dataset[Any]):
    def __init__(self, images: Tensor, transform: Callable[[Any], Tensor], as_pil: bool) -> None:
        self.transform = transform
        self.images: Any = images
        if as_pil:
            self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.transform(self.images[index]), "label": index % 10}


class WithSeeds(Images):
    def get_batch(self, indices: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        return {**super().get_batch(indices, seeds), "seed": seeds}


def batches(dataset: Any, batch_size: int) -> Any:
    if isinstance(dataset, PerSample):
        return iter(DataLoader(dataset, batch_size, shuffle=True))
    sampler = ExactSampler(len(dataset), batch_size, seed=0, shuffle=True)
    loader = DataLoader(SeededDataset(dataset, 0), batch_size, sampler=sampler, collate_fn=dict)
    normalise = Normalise()

    def augmented() -> Any:
        for batch in loader:
            images = random_crop_and_flip(batch["image"], batch["seed"], padding=4)
            yield {"image": normalise(images), "label": batch["label"]}

    return augmented()


def time_batches(dataset: Any, batch_size: int) -> float:
    """CPU seconds of a batch, the first one left out: other processes hardly change them."""
    each = batches(dataset, batch_size)
    next(each)
    started_s = time.process_time()
    for _ in range(N_BATCHES):
        next(each)
    return (time.process_time() - started_s) / N_BATCHES


def measure_batches() -> None:
    torch.set_num_threads(1)
    reuse_memory()
    images = torch.randint(0, 256, (N_IMAGES, 3, 32, 32), dtype=torch.uint8)
    pil = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    tensors = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    datasets = {
        "torchvision for each image, PIL": PerSample(images, pil, as_pil=True),
        "torchvision for each image, tensors": PerSample(images, tensors, as_pil=False),
        "a batch at once": WithSeeds(images, torch.zeros(N_IMAGES, dtype=torch.int64)),
    }
    texts = []
    for batch_size in (128, 512):
        things = {
            name: lambda dataset=dataset, n=batch_size: time_batches(dataset, n)
            for name, dataset in datasets.items()
        }
        values = alternate(things, N_ROUNDS)
        texts.append(f"Batches of {batch_size}:\n\n{spread(values, 'ms', 1e3)}")
    intro = (
        f"Crop with padding 4, flip, normalisation to float32, from images in memory, with the "
        f"loader, and with memory that is kept as in a run; torchvision {torchvision.__version__}, "
        f"one thread, no workers, {N_ROUNDS} x {N_BATCHES} batches of each, CPU time."
    )
    report("A batch of images", "\n\n".join([intro, *texts]))


def measure_folder(images: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        splits = [Path(folder, split) for split in ("train", "test")]
        for split in splits:
            split.symlink_to((images / split.name).absolute())

        def start(first: bool) -> float:
            for file in Path(folder).glob("*.pixels") if first else ():
                file.unlink()
            started_s = time.perf_counter()
            for split in splits:
                read_images(split, 32)
            return time.perf_counter() - started_s

        both = {"the first start": lambda: start(True), "the second": lambda: start(False)}
        values = alternate(both, 3)
    report("A folder of images in memory", spread(values, "s"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    folder = parser.parse_args().folder
    if folder:
        measure_folder(folder)
    else:
        measure_batches()
