"""All images of a folder in memory: decoded once, and read from one file at the next start."""

import os
from pathlib import Path
from time import perf_counter, time
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_trainer.images.pixel_file import PixelFile, describe_files
from lightning_trainer.report.bar import new_bar
from lightning_trainer.session.terminal import can_redraw

_WORTH_S = 1.0  # what is decoded sooner is not kept
_SETTLED_S = 2.0  # the coarsest times of change that file systems have in use (FAT)


def read_images(folder: str | os.PathLike[str], size: int) -> tuple[Tensor, Tensor, list[str]]:
    """The images in `folder`/CLASS, resized to `size` x `size` pixels, by torchvision.

    They are decoded on all cores. What took a second or more is kept in a file beside `folder`, or
    in the user's cache folder where that can't be written, and a line tells so. The file is used as
    long as all images have the names, sizes and times of change that they had.

    Returns:
        Images, uint8 (N, 3, `size`, `size`), in the order of their paths; their labels, int64 (N,);
        the names of the classes.

    Raises:
        FileNotFoundError: If there is no class, or one without an image.
        OSError: If a file can't be read as an image.
        ModuleNotFoundError: If torchvision is not installed.
    """
    import torchvision
    from torchvision.datasets import ImageFolder

    started_s = time()
    found = ImageFolder(str(folder), loader=read_image)
    paths = [path for path, _ in found.samples]
    labels = torch.tensor(found.targets)
    shape = (len(paths), 3, size, size)
    how = f"{size} px, torchvision {torchvision.__version__}, torch {torch.__version__}"
    described, changed_s = describe_files(folder, paths, how)
    file = PixelFile(Path(folder), f"{size}px", described)
    images = file.load(shape)
    if images is None:
        decoding_s = perf_counter()
        images = _decode_all(found, shape)
        if perf_counter() - decoding_s >= _WORTH_S:
            settled = changed_s < started_s - _SETTLED_S
            same = settled and describe_files(folder, paths, how)[0] == described
            _tell(file.keep(images) if same else _CHANGING.format(folder))
    else:
        _tell(file.told)
    return images, labels, found.classes


_CHANGING = "Images: {} has just been changed, so they are not kept decoded for the next start"


def _decode_all(found: Any, shape: tuple[int, ...]) -> Tensor:
    from torchvision.transforms import v2

    found.transform = v2.Resize(list(shape[2:]))
    images = torch.empty(shape, dtype=torch.uint8)
    n = 0
    # One processor decodes 60,000 small images in about ten seconds: let all of them help.
    # The generator is its own: what a run draws must not depend on whether this was needed.
    own = torch.Generator()
    loader = DataLoader(found, 500, num_workers=os.cpu_count() or 0, generator=own)
    is_shown = can_redraw() and not getattr(rank_zero_only, "rank", 0)
    with new_bar(len(found), delay=2, leave=False, disable=not is_shown) as bar:
        for some, _ in loader:
            images[n : n + len(some)] = some
            n += len(some)
            bar.update(len(some))
    return images


def read_image(path: str) -> Tensor:
    """An image, uint8 (3, H, W).

    Raises:
        OSError: If it can't be read; the message names the file.
    """
    from torchvision.io import ImageReadMode, decode_image

    try:
        image: Tensor = decode_image(path, ImageReadMode.RGB)
    except RuntimeError as ex:
        raise OSError(f"{path} can't be read as an image: replace it or remove it") from ex
    return image


def _tell(line: str) -> None:
    if getattr(rank_zero_only, "rank", 0) == 0:  # where nothing of Lightning runs there is none
        print(line, flush=True)
