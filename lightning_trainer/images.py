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
        fill: What comes in at the borders: zeros, or the image mirrored at its outermost pixels.
        flips: Whether any are mirrored.

    Returns:
        A new tensor like `images`.
    """
    n = 2 * padding + 1
    top, left = draw(seeds, 0, n), draw(seeds, 1, n)
    flipped = draw(seeds, 2, 1 + flips).bool()
    return crop_and_flip(images, top, left, flipped, padding, fill)


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
    padded = _padded(images, padding, fill)
    both = torch.stack([padded, padded.flip(3)])
    strides = both.stride()
    device = images.device
    # Where each row of the result begins among all values of `both`, (B, C, H).
    rows = top[:, None] + torch.arange(height, device=device)
    channels = torch.arange(n_channels, device=device)
    begins = flipped * strides[0] + torch.arange(n_images, device=device) * strides[1]
    begins += torch.where(flipped, 2 * padding - left, left)
    begins = (begins[:, None] + channels * strides[2])[:, :, None] + rows[:, None] * strides[3]
    # A row is copied as a whole: of the ways to do it in torch this is the fastest.
    all_rows = both.as_strided([both.numel() - width + 1, width], [1, 1])
    return all_rows.index_select(0, begins.flatten()).view(images.shape)


def _padded(images: Tensor, padding: int, fill: str) -> Tensor:
    if fill == "zeros":
        return functional.pad(images, [padding] * 4)
    for dim in (2, 3):  # torch's own reflection pads no integers on a GPU
        size = images.shape[dim]
        before = images.narrow(dim, 1, padding).flip(dim)
        after = images.narrow(dim, size - 1 - padding, padding).flip(dim)
        images = torch.cat([before, images, after], dim)
    return images


def _signed(number: int) -> int:
    """The signed number of the same 64 bits; torch computes with those, and wraps around."""
    return (number + 2**63) % 2**64 - 2**63


def _shift_right(bits: Tensor, n: int) -> Tensor:
    """Without the copies of the sign that torch's shift moves in."""
    return (bits >> n) & ((1 << (64 - n)) - 1)
