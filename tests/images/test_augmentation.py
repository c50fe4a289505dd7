"""Crops and flips of a batch, against each image by itself."""

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from lightning_trainer.images import augmentation
from lightning_trainer.images.augmentation import (
    _draw_by_torch,
    crop_and_flip,
    draw,
    random_crop_and_flip,
)

IMAGES = torch.randint(
    0, 256, (40, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
SEEDS = torch.arange(40) - 20


@pytest.mark.parametrize(("fill", "mode"), [("zeros", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_each_image_is_what_torchvision_makes_of_it(fill, mode, padding):
    generator = torch.Generator().manual_seed(1)
    top, left = torch.randint(0, 2 * padding + 1, (2, 40), generator=generator)
    flipped = torch.rand(40, generator=generator) < 0.5
    got = crop_and_flip(IMAGES, top, left, flipped, padding, fill)
    assert got.dtype == torch.uint8
    for i, image in enumerate(IMAGES):
        expected = functional.pad(image, [padding] * 4, padding_mode=mode)
        expected = functional.crop(expected, int(top[i]), int(left[i]), 9, 7)
        if flipped[i]:
            expected = functional.horizontal_flip(expected)
        assert torch.equal(got[i], expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("fill", ["zeros", "reflect"])
@pytest.mark.parametrize(("n_mask_bytes", "n_at_once"), [(0, 2**20), (0, 1000), (2**20, 1000)])
def test_what_fits_into_a_cache_and_how_zeros_are_made_changes_nothing(
    dtype, fill, n_mask_bytes, n_at_once, monkeypatch
):
    images = IMAGES.to(dtype)
    images[0] = float("nan") if dtype.is_floating_point else 1  # it must not get to others
    transposed = images.transpose(2, 3).contiguous().transpose(2, 3)
    for padding in (0, 4):
        expected = random_crop_and_flip(images, SEEDS, padding, fill)
        with monkeypatch.context() as patch:
            patch.setattr(augmentation, "_MOST_MASK_BYTES", n_mask_bytes)
            patch.setattr(augmentation, "_BYTES_AT_ONCE", n_at_once)
            made = random_crop_and_flip(transposed, SEEDS, padding, fill)
        assert made.dtype is dtype
        assert torch.equal(made.nan_to_num(7.0), expected.nan_to_num(7.0))
        assert not made[1:].isnan().any()


def test_images_of_a_cpu_stay_there_whatever_the_default_device_is():
    expected = random_crop_and_flip(IMAGES, SEEDS, 3)
    augmentation._masks.cache_clear()
    with torch.device("meta"):
        made = random_crop_and_flip(IMAGES, SEEDS, 3)
    assert torch.equal(made, expected)


def test_a_batch_may_be_empty():
    assert random_crop_and_flip(IMAGES[:0], SEEDS[:0], 2).shape == (0, 3, 9, 7)


def test_crops_and_flips_are_distributed_as_torchvisions():
    """Of an image whose pixels are all different, each crop and flip is another one."""
    image = torch.arange(20).view(1, 4, 5)
    pipeline = v2.Compose([v2.RandomCrop((4, 5), padding=1), v2.RandomHorizontalFlip()])
    torch.manual_seed(0)
    expected = {tuple(pipeline(image).flatten().tolist()) for _ in range(1000)}
    n = 18_000
    made = random_crop_and_flip(image.expand(n, 1, 4, 5), torch.arange(n), padding=1)
    kinds, counts = made.flatten(1).unique(dim=0, return_counts=True)
    assert {tuple(kind) for kind in kinds.tolist()} == expected
    assert len(expected) == 18  # 3 rows, 3 columns, flipped or not
    # Chi-squared with 17 degrees of freedom: above 40.8 once in 1,000 times.
    assert ((counts - 1000) ** 2 / 1000).sum() < 40.8


def test_told_so_it_mirrors_none():
    made = random_crop_and_flip(IMAGES, SEEDS, padding=0, flips=False)
    assert torch.equal(made, IMAGES)


def test_a_sample_depends_on_its_seed_alone():
    whole = random_crop_and_flip(IMAGES, SEEDS, 2)
    order = torch.randperm(40)
    for part in (order[:1], order[5:17], order):
        assert torch.equal(random_crop_and_flip(IMAGES[part], SEEDS[part], 2), whole[part])


def test_draws_are_uniform_and_streams_unrelated():
    seeds = torch.arange(-50_000, 50_000)
    numbers = torch.stack(draw(seeds, (8, 8, 8)))
    assert numbers.min() == 0
    for one, other in ((0, 1), (1, 2), (0, 2)):
        counts = torch.bincount(numbers[one] * 8 + numbers[other], minlength=64)
        # Chi-squared with 63 degrees of freedom: above 103.4 once in 1,000 times.
        assert ((counts - 1562.5) ** 2 / 1562.5).sum() < 103.4


def test_draws_are_those_of_splitmix64():
    """The first number for seed 0, from the reference implementation's output, shifted by one."""
    [number] = draw(torch.tensor([0]), [2**63 - 1])
    assert number.item() == 0xE220A8397B1DCDAF >> 1


def test_a_gpu_draws_what_a_processor_draws():
    seeds = torch.randint(-(2**63), 2**63 - 1, (1000,), generator=torch.Generator().manual_seed(0))
    limits = (9, 2, 2**62)
    both = zip(_draw_by_torch(seeds, limits), draw(seeds, limits), strict=True)
    assert all(torch.equal(*pair) for pair in both)
