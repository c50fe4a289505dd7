"""Mistakes of samples, labels and splits, each planted in a project of the gallery."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from check_projects import TARGETS, Kind, NotApplicable, extend, mutation
from torch import Tensor


class Changed(torch.utils.data.Dataset):
    """The samples of a dataset after `change(sample, index)`."""

    def __init__(self, data: Any, change: Callable[[Any, int], Any]) -> None:
        self.data, self.change = data, change
        self.collate_fn = getattr(data, "collate_fn", None) or torch.utils.data.default_collate

    def __len__(self) -> int:
        return len(self.data)

    def raw(self, index: int) -> Any:
        if not hasattr(self.data, "get_batch"):
            return self.data[index]
        batch = self.data.get_batch(torch.tensor([index]), torch.tensor([0]))
        return {key: value[0] for key, value in batch.items()}

    def __getitem__(self, index: int) -> Any:
        return self.change(self.raw(index), index)


def of_data(
    kind: Kind, change: Callable[[Any, int], Any], modes: tuple[str, ...] = ("train", "val")
) -> None:
    base = kind.data

    def create_data(self: Any) -> None:
        base.create_data(self)
        for mode in modes:
            data = getattr(self, f"{mode}_dataset")
            if not hasattr(data, "__len__"):
                raise NotApplicable
            several = isinstance(data, dict)
            if not several:
                change(Changed(data, change).raw(0), 1)  # may be not applicable
            changed = {k: Changed(v, change) for k, v in data.items()} if several else None
            setattr(self, f"{mode}_dataset", changed or Changed(data, change))

    extend(kind, "data", create_data=create_data)


def values_of(sample: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Changes the floats of the input; NotApplicable where there are none."""
    if isinstance(sample, Tensor):
        return change(sample)
    keys = [
        key
        for key, value in sample.items()
        if key not in TARGETS and torch.as_tensor(value).is_floating_point()
    ]
    if not keys:
        raise NotApplicable
    return {**sample, **{key: change(torch.as_tensor(sample[key])) for key in keys}}


@mutation("leak/copies", "leak/same_dataset")
def validation_from_training(kind: Kind) -> None:
    base = kind.data

    def create_data(self: Any) -> None:
        base.create_data(self)
        if not hasattr(self.train_dataset, "__len__"):
            raise NotApplicable
        part = range(min(200, len(self.train_dataset) // 3))
        whole = Changed(self.train_dataset, lambda sample, _: sample)
        self.val_dataset = Changed(torch.utils.data.Subset(whole, part), lambda sample, _: sample)
        self.val_dataset.collate_fn = whole.collate_fn

    extend(kind, "data", create_data=create_data)


@mutation("relation/unrelated")
def targets_shuffled(kind: Kind) -> None:
    base = kind.data

    def create_data(self: Any) -> None:
        base.create_data(self)
        data = self.train_dataset
        if not hasattr(data, "__len__"):
            raise NotApplicable
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1)).tolist()

        def change(sample: Any, index: int) -> Any:
            keys = [k for k in TARGETS if isinstance(sample, dict) and k in sample]
            if not keys:
                raise NotApplicable
            other = self.train_dataset.raw(order[index])
            return {**sample, **{key: other[key] for key in keys}}

        self.train_dataset = Changed(data, change)

    if kind.module.__name__ in ("VaeModule", "ByolModule", "GanModule"):
        raise NotApplicable
    extend(kind, "data", create_data=create_data)


@mutation("scale/shift")
def validation_times_255(kind: Kind) -> None:
    of_data(kind, lambda sample, _: values_of(sample, lambda t: 255 * t), ("val",))


@mutation("scale/large")
def not_normalised(kind: Kind) -> None:
    of_data(kind, lambda sample, _: values_of(sample, lambda t: 255 * t))


@mutation("values/not_finite")
def nan_in_the_data(kind: Kind) -> None:
    of_data(
        kind,
        lambda s, i: values_of(s, lambda t: t * torch.nan) if i % 20 == 0 else s,
        ("train",),
    )


@mutation("samples/unsteady")
def generator_of_its_own(kind: Kind) -> None:
    generator = np.random.default_rng(0)
    of_data(kind, lambda s, _: values_of(s, lambda t: t + float(generator.normal())), ("train",))


@mutation("samples/reseeded")
def seeded_in_each_sample(kind: Kind) -> None:
    def change(sample: Any, _: int) -> Any:
        torch.manual_seed(0)
        return values_of(sample, lambda t: t + torch.randn(t.shape))

    of_data(kind, change, ("train",))


@mutation("samples/augmented")
def validation_with_noise(kind: Kind) -> None:
    of_data(kind, lambda s, _: values_of(s, lambda t: t + torch.randn(t.shape)), ("val",))


@mutation("samples/buffer")
def one_buffer(kind: Kind) -> None:
    buffers: dict[Any, Tensor] = {}

    def kept(tensor: Tensor) -> Tensor:
        buffer = buffers.setdefault(tuple(tensor.shape), torch.empty_like(tensor))
        return buffer.copy_(tensor)

    of_data(kind, lambda sample, _: values_of(sample, kept), ("train",))
