"""Random crops and flips of a whole batch at once, on the device that holds it.

Each sample has its own draw, which depends on its seed alone: `get_batch` of a dataset gets such
seeds, functions of the run's seed, the epoch and the sample. The result is that of torchvision's
`RandomCrop` and `RandomHorizontalFlip` on each image by itself, in a small part of the time
(benchmarks/images.py).
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

# The finaliser of SplitMix64 and its increment: Steele, Lea, Flood, "Fast splittable pseudorandom
# number generators", OOPSLA 2014.
_INCREMENT = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def draw(seeds: Tensor, stream: int, n: int) -> Tensor:
    """For each seed an integer in [0, n), all equally likely; another `stream`, other numbers.

    Args:
        seeds: int64 (B,).
        stream: Which of a sample's numbers, from 0 on.
        n: How many values there are, far below 2**63.

    Returns:
        int64 (B,), on the device of `seeds`.
    """
    bits = seeds + _signed((stream + 1) * _INCREMENT)
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        bits = (bits ^ _shift_right(bits, shift)) * _signed(factor)
    return _shift_right(bits ^ _shift_right(bits, 31), 1) % n


def random_crop_and_flip(
    images: Tensor, seeds: Tensor, padding: int, fill: Literal["zeros", "reflect"] = "zeros"
) -> Tensor:
    """Moves each image by up to `padding` pixels up, down, left and right, and flips half of them.

    Args:
        images: (B, C, H, W), of any type.
        seeds: int64 (B,), on the same device; may be any integers.
        padding: In pixels, less than H and W.
        fill: What comes in at the borders: zeros, or the image mirrored at its outermost pixels.

    Returns:
        A new tensor like `images`.
    """
    n = 2 * padding + 1
    top, left = draw(seeds, 0, n), draw(seeds, 1, n)
    return crop_and_flip(images, top, left, draw(seeds, 2, 2).bool(), padding, fill)


def crop_and_flip(
    images: Tensor,
    top: Tensor,
    left: Tensor,
    flipped: Tensor,
    padding: int,
    fill: Literal["zeros", "reflect"] = "zeros",
) -> Tensor:
    """Crops each image, padded on all sides, to its size at (top, left), then flips it or not.

    Args:
        images: (B, C, H, W), of any type.
        top: int64 (B,), from 0 to 2 * `padding`.
        left: As `top`.
        flipped: bool (B,), whether left and right are exchanged.
        padding: In pixels, less than H and W.
        fill: As for `random_crop_and_flip`.

    Returns:
        A new tensor like `images`.
    """
    n_images, n_channels, height, width = images.shape
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = torch.where(flipped[:, None], width - 1 - columns, columns) + left[:, None]
    rows = rows + top[:, None]
    if fill == "reflect":
        rows, columns = _mirrored(rows - padding, height), _mirrored(columns - padding, width)
    else:
        images = functional.pad(images, [padding] * 4)
    pixels = rows[:, :, None] * images.shape[3] + columns[:, None, :]
    pixels = pixels.view(n_images, 1, -1).expand(-1, n_channels, -1)
    return images.flatten(2).gather(2, pixels).view(n_images, n_channels, height, width)


def _mirrored(positions: Tensor, size: int) -> Tensor:
    return size - 1 - (size - 1 - positions.abs()).abs()


def _signed(number: int) -> int:
    """The signed number of the same 64 bits; torch computes with those, and wraps around."""
    return (number + 2**63) % 2**64 - 2**63


def _shift_right(bits: Tensor, n: int) -> Tensor:
    """Without the copies of the sign that torch's shift moves in."""
    return (bits >> n) & ((1 << (64 - n)) - 1)
