"""All images of a folder in memory: decoded once, and read from one file at the next start."""

import functools
import os
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, time
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_trainer.images.pixel_file import PixelFile, describe_files
from lightning_trainer.report.bar import new_bar
from lightning_trainer.session.extras import install_command
from lightning_trainer.session.terminal import can_redraw

_WORTH_S = 1.0  # what is decoded sooner is not kept
_BATCH_BYTES = 2**20  # workers hold two each in shared memory, of which a container may have 64 MB
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
        OSError: If a file can't be read as an image; the message names it.
        ModuleNotFoundError: If torchvision is not installed.
    """
    _require_torchvision()
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
    n, n_cores = 0, _n_cores()
    # One processor decodes 60,000 small images in about ten seconds: let all of them help.
    a_batch = min(len(images) // max(n_cores, 1), _BATCH_BYTES // images[0].nbytes) or 1
    # The generator is its own: what a run draws must not depend on whether this was needed.
    own = torch.Generator()
    loader = DataLoader(found, a_batch, num_workers=n_cores, generator=own)
    is_shown = can_redraw() and not getattr(rank_zero_only, "rank", 0)
    with new_bar(len(found), delay=2, leave=False, disable=not is_shown) as bar:
        for some, _ in loader:
            images[n : n + len(some)] = some
            n += len(some)
            bar.update(len(some))
    return images


def _n_cores() -> int:
    """Those that this process may use."""
    of_process = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(of_process(0)) if of_process else os.cpu_count() or 0


def read_image(path: str) -> Tensor:
    """An image, uint8 (3, H, W): of 16 bits the higher 8, of an animation the first picture.

    What torchvision can't decode, e.g. BMP and TIFF, PIL does.

    Raises:
        OSError: If it can't be read; the message names the file.
        ModuleNotFoundError: If torchvision is not installed.
    """
    _require_torchvision()
    from torchvision.io import ImageReadMode, decode_image

    try:
        image: Tensor = decode_image(path, ImageReadMode.RGB)
    except RuntimeError:
        image = _read_by_pil(path)
    if image.dtype is not torch.uint8:
        image = (image.int() >> 8).to(torch.uint8)  # as `png_set_strip_16` of libpng
    return image if image.ndim == 3 else image[0]


def _read_by_pil(path: str) -> Tensor:
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    try:
        with Image.open(path) as picture:
            if picture.mode[0] in "IF":
                raise OSError(f"its pixels are {picture.mode}: convert it to 8 bits")
            tensor: Tensor = pil_to_tensor(picture.convert("RGB"))
    except (OSError, SyntaxError) as ex:  # the latter of a damaged PNG
        raise OSError(f"{path} can't be read as an image ({ex}): replace it or remove it") from ex
    return tensor


@functools.cache
def _require_torchvision() -> None:
    if not find_spec("torchvision"):
        raise ModuleNotFoundError(f"images are read by torchvision: {install_command('images')}")


def _tell(line: str) -> None:
    if getattr(rank_zero_only, "rank", 0) == 0:  # where nothing of Lightning runs there is none
        print(line, flush=True)
