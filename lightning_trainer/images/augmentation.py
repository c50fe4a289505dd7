"""Random crops and flips of a whole batch at once, on the device that holds it.

Each sample's draw depends on its seed alone; `get_batch` of a dataset gets the seeds. The images
equal those of torchvision's `RandomCrop` and `RandomHorizontalFlip` one by one, in a small part of
the time (benchmarks/images.py).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

# The finaliser of SplitMix64 and its increment: Steele, Lea, Flood, "Fast splittable pseudorandom
# number generators", OOPSLA 2014.
_INCREMENT = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)

_BYTES_AT_ONCE = 2**21  # of images that a CPU moves at a time: they then stay in its cache
_MOST_MASK_BYTES = 2**20  # of the masks for one size of images, which are kept


def draw(seeds: Tensor, limits: Sequence[int]) -> list[Tensor]:
    """For each limit n, far below 2**63, uniform integers in [0, n), one for each seed.

    Takes `seeds`, int64 (B,), and returns for each limit int64 (B,) on the same device.
    """
    return (_draw_by_numpy if seeds.is_cpu else _draw_by_torch)(seeds, limits)


def _draw_by_torch(seeds: Tensor, limits: Sequence[int]) -> list[Tensor]:
    streams = torch.arange(1, len(limits) + 1, device=seeds.device)[:, None]
    bits = seeds + streams * _signed(_INCREMENT)
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        bits = (bits ^ _shift_right(bits, shift)) * _signed(factor)
    bits = _shift_right(bits ^ _shift_right(bits, 31), 1)
    return [numbers % n for numbers, n in zip(bits, limits, strict=True)]


def _draw_by_numpy(seeds: Tensor, limits: Sequence[int]) -> list[Tensor]:
    """The same numbers in a third of the time: a small operation of torch's costs 3 us."""
    streams = np.arange(1, len(limits) + 1, dtype=np.uint64)[:, None]
    bits = seeds.numpy().view(np.uint64) + streams * np.uint64(_INCREMENT)
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    bits = (bits ^ (bits >> np.uint64(31))) >> np.uint64(1)
    columns = zip(bits.view(np.int64), limits, strict=True)
    return [torch.from_numpy(numbers % n) for numbers, n in columns]


def random_crop_and_flip(
    images: Tensor,
    seeds: Tensor,
    padding: int,
    fill: Literal["zeros", "reflect"] = "zeros",
    flips: bool = True,
) -> Tensor:
    """Moves each image by up to `padding` pixels up, down, left and right, and mirrors half.

    Args:
        images: (B, C, H, W), of any type.
        seeds: int64 (B,), on the same device; may be any integers.
        padding: In pixels, less than H and W.
        fill: The padding: zeros, or the image mirrored at its outermost pixels.
        flips: Whether half of the images are mirrored.

    Returns:
        A new tensor like `images`.
    """
    n = 2 * padding + 1
    top, left, flipped = draw(seeds, (n, n, 1 + flips))
    return crop_and_flip(images, top, left, flipped.bool(), padding, fill)


def crop_and_flip(
    images: Tensor,
    top: Tensor,
    left: Tensor,
    flipped: Tensor,
    padding: int,
    fill: Literal["zeros", "reflect"] = "zeros",
) -> Tensor:
    """Pads each image, crops it to its size at (top, left), and flips it where `flipped`.

    Args:
        images: (B, C, H, W), of any type.
        top: int64 (B,), from 0 to 2 * `padding`.
        left: As `top`.
        flipped: bool (B,), whether to exchange left and right.
        padding: In pixels, less than H and W.
        fill: As for `random_crop_and_flip`.

    Returns:
        A new tensor like `images`.
    """
    crop: Callable[..., None] = functools.partial(_pad_and_crop, fill=fill)
    if images.is_cpu and fill == "zeros" and _mask_bytes(images, padding) <= _MOST_MASK_BYTES:
        crop = _shift_and_mask
    left = torch.where(flipped, 2 * padding - left, left)  # of the mirrored image
    given = images, top, left, flipped, images.new_empty(images.shape)
    if images.is_cpu and images.nbytes > _BYTES_AT_ONCE:
        n_at_once = max(_BYTES_AT_ONCE // images[0].nbytes, 1)
        for part in zip(*(each.split(n_at_once) for each in given), strict=True):
            crop(*part, padding)
    elif len(images):
        crop(*given, padding)
    return given[-1]


def _pad_and_crop(
    images: Tensor,
    top: Tensor,
    left: Tensor,
    flipped: Tensor,
    result: Tensor,
    padding: int,
    fill: str,
) -> None:
    n_images, n_channels, height, width = images.shape
    # The padded images, and the same mirrored.
    size = height + 2 * padding, width + 2 * padding
    both = images.new_zeros((2, n_images, n_channels, *size))
    _fill(both, images, padding, fill)
    strides, numbers = both.stride(), torch.arange(n_images, device=images.device)
    # What an image of the result would be, were its first pixel any of those in `both`.
    n_windows = both.numel() - both[0, 0].numel() + 2 * padding * (strides[3] + 1) + 1
    windows = both.as_strided([n_windows, *images.shape[1:]], [1, *strides[2:]])
    begins = numbers * strides[1] + flipped * strides[0] + top * strides[3] + left
    torch.index_select(windows, 0, begins, out=result)


def _shift_and_mask(
    images: Tensor, top: Tensor, left: Tensor, flipped: Tensor, result: Tensor, padding: int
) -> None:
    """As `_pad_and_crop` with zeros: copies each image as one block, which begins elsewhere.

    What it gets of other rows and images is set to zero.
    """
    n_images, _, height, width = images.shape
    n_values, guard = images[0].numel(), images.new_zeros(padding * (width + 1))
    values = torch.cat([guard, images.flatten(), images.flip(3).flatten(), guard])
    windows = values.as_strided([len(values) - n_values + 1, n_values], [1, 1])
    places = torch.arange(0, n_images * n_values, n_values, device="cpu")
    places += flipped * images.numel()
    begins = places.add_(left).add_(top, alpha=width)
    torch.index_select(windows, 0, begins, out=result.view(n_images, -1))
    masks = _masks(height, width, padding, images.element_size())
    mask = masks.index_select(0, torch.add(left, top, alpha=2 * padding + 1))
    result.view(torch.uint8).view(n_images, -1, mask.shape[-1]).bitwise_and_(mask)


def _mask_bytes(images: Tensor, padding: int) -> int:
    return (2 * padding + 1) ** 2 * images.shape[2] * images.shape[3] * images.element_size()


@functools.lru_cache(maxsize=16)
def _masks(height: int, width: int, padding: int, n_bytes: int) -> Tensor:
    """For each crop, and each byte of a channel, 255 where the image is, and 0 in the padding."""
    offsets = torch.arange(-padding, padding + 1, device="cpu")[:, None]
    rows, columns = (torch.arange(n, device="cpu") + offsets for n in (height, width))
    rows, columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    inside = rows[:, None, :, None] & columns[None, :, None, :]  # (crops, crops, H, W)
    masks = inside.to(torch.uint8).mul_(255).view(-1, 1, height * width)
    return masks.repeat_interleave(n_bytes, 2)


def _fill(both: Tensor, images: Tensor, padding: int, fill: str) -> None:
    if fill == "zeros":  # the borders are zero already
        both = both.narrow(3, padding, images.shape[2]).narrow(4, padding, images.shape[3])
    else:
        for dim in (2, 3):  # torch's own reflection can't pad integers on a GPU
            size = images.shape[dim]
            before = images.narrow(dim, 1, padding).flip(dim)
            after = images.narrow(dim, size - 1 - padding, padding).flip(dim)
            images = torch.cat([before, images, after], dim)
    both[0] = images
    both[1] = images.flip(3)


def _signed(number: int) -> int:
    """The signed number of the same 64 bits, as torch computes with them."""
    return (number + 2**63) % 2**64 - 2**63


def _shift_right(bits: Tensor, n: int) -> Tensor:
    """Fills up with zeros; torch's shift fills up with copies of the sign."""
    return (bits >> n) & ((1 << (64 - n)) - 1)
