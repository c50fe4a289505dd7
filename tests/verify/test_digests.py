"""Digests differ where a bit differs, and only there."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from lightning_trainer.verify.digests import digest, leaves, sample_digests


def differing(a: dict[str, list[str]], b: dict[str, list[str]]) -> list[tuple[str, int]]:
    return [(name, i) for name in a for i in range(len(a[name])) if a[name][i] != b[name][i]]


def test_a_sample_has_a_digest_of_its_own():
    image = torch.arange(12.0).reshape(3, 4)
    batch = {"image": image, "name": ["a", "b", "c"], "pair": (torch.zeros(3), torch.ones(3))}
    changed = {**batch, "image": image.clone()}
    changed["image"][1, 2] += 1e-6
    renamed = {**batch, "name": ["a", "b", "d"]}
    digests, others, renames = map(sample_digests, (batch, changed, renamed))
    assert [*digests] == ["image", "name", "pair.0", "pair.1"]
    assert len(set(digests["image"])) == 3
    assert differing(digests, others) == [("image", 1)]
    assert differing(digests, renames) == [("name", 2)]


def test_what_is_not_by_sample_is_part_of_each():
    image = torch.zeros(3, 4)
    a, b = (sample_digests({"image": image, "scale": torch.tensor(s)}) for s in (1.0, 2.0))
    assert differing(a, b) == [("scale", 0), ("scale", 1), ("scale", 2)]
    assert len(sample_digests({"text": "no tensor at all"})["text"]) == 1


@pytest.mark.parametrize("more", [{}, {"label": torch.arange(4)}], ids=["alone", "with labels"])
def test_a_list_of_images_of_several_sizes_is_cut_into_images(more):
    images = [torch.ones(3, 8, width) for width in (5, 6, 7, 8)]
    targets = [{"boxes": torch.ones(n, 4), "name": "a"} for n in range(4)]
    batch = {"images": images, "targets": targets, **more}
    for other, changed in (
        ({**batch, "images": [*images[:2], images[2] * 2, images[3]]}, ("images", 2)),
        ({**batch, "targets": [{**targets[0], "name": "b"}, *targets[1:]]}, ("targets", 0)),
    ):
        assert differing(sample_digests(batch), sample_digests(other)) == [changed]
    assert differing(sample_digests((images, targets)), sample_digests((targets, images)))


def test_a_batch_may_be_a_pair_or_a_list_of_samples():
    pair = torch.ones(4, 3), torch.arange(4)
    assert {k: len(v) for k, v in sample_digests(pair).items()} == {"0": 4, "1": 4}
    samples = [{"x": torch.ones(n)} for n in (1, 2)]
    assert len(sample_digests(samples)["sample"]) == 2


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(2), -torch.zeros(2)),
        (torch.zeros(2), torch.zeros(1, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.ones(2).bfloat16(), torch.full((2,), 1.0078125).bfloat16()),
        (torch.eye(2).to_sparse(), 2 * torch.eye(2).to_sparse()),
        (torch.tensor(True), torch.tensor(False)),
        (0.1 + 0.2, 0.3),
        (1, 1.0),
    ],
)
def test_a_digest_differs_with_any_bit(a, b):
    assert digest(a) != digest(b)
    assert len(digest(a)) == 16


def test_a_digest_is_the_same_for_the_same_bits():
    assert digest(torch.full((2,), torch.nan)) == digest(torch.full((2,), torch.nan))
    assert digest(torch.arange(6).reshape(2, 3).T) == digest(torch.tensor([[0, 3], [1, 4], [2, 5]]))
    assert digest(object()) == digest(object())  # whose addresses differ


def test_leaves_are_named_by_their_way():
    nested = {"a": {0: [1.0, 2.0], "b": [torch.ones(1), {"c": None}]}, "empty": {}}
    names = [name for name, _ in leaves(nested)]
    assert names == ["a.0", "a.b.0", "a.b.1.c", "empty"]


def test_a_digest_of_a_sharded_tensor_is_that_of_the_part_of_this_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded = distribute_tensor(torch.arange(6.0), mesh, [Shard(0)])
        assert digest(sharded) == digest(torch.arange(6.0))
    finally:
        dist.destroy_process_group()
