"""The data of a project, by its samples and in batches."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_trainer.base.sampling import SeededDataset
from lightning_trainer.check.findings import CannotCheck
from lightning_trainer.check.nested import copied, first_samples, tensors_in
from lightning_trainer.internals_of_graphs import to_device

Kind = TypeVar("Kind")
# Of this many samples at most, fetched within so many seconds, the checks of data look.
N_SAMPLES, SAMPLES_S = 20_000, 3.0


class Supply:
    """The loaders of a trainer that is about to start.

    A `mode` is "train" or "val", and "val/NAME" for each further set of validation data.
    """

    def __init__(self, trainer: pl.Trainer, val: Any = None) -> None:
        self.trainer, self.data = trainer, trainer.datamodule  # type: ignore[attr-defined]
        self.loaders: dict[str, Any] = {"train": trainer.train_dataloader, "val": None}
        self._titles = {"train": "train_dataset", "val": "val_dataset"}
        sets = dict(enumerate(val)) if isinstance(val, list | tuple) else val
        if isinstance(sets, Mapping):
            for name, loader in sets.items():
                mode = "val" if self.loaders["val"] is None else f"val/{name}"
                self.loaders[mode], self._titles[mode] = loader, f"val_dataset[{name!r}]"
        else:
            self.loaders["val"] = val
        self._known: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Kind]) -> Kind:
        """What `make` returns, made at the first call with this key."""
        if key not in self._known:
            self._known[key] = make()
        known: Kind = self._known[key]
        return known

    def title(self, mode: str) -> str:
        """For people, e.g. "val_dataset", of several sets `val_dataset['NAME']`."""
        return self._titles[mode]

    @property
    def val_modes(self) -> list[str]:
        """Of the sets of validation data, the first of which is "val"."""
        return [mode for mode in self.loaders if mode != "train"]

    @property
    def has_several_sets(self) -> bool:
        """Then some of them may differ from the training data, or be a part of it, on purpose."""
        return len(self.loaders) > 2

    def has(self, mode: str) -> bool:
        return isinstance(getattr(self.loaders[mode], "dataset", None), SeededDataset)

    def dataset(self, mode: str) -> SeededDataset:
        """The dataset behind the loader; CannotCheck if its samples have no indices."""
        if self.loaders[mode] is None:
            raise CannotCheck("there is no validation data")
        if not self.has(mode):
            raise CannotCheck(
                f"the {mode} loader is the project's own, or of a stream: no sample has an index"
            )
        dataset: SeededDataset = self.loaders[mode].dataset
        return dataset

    def size(self, mode: str) -> int:
        """Number of samples; 0 if it is not known."""
        return len(self.loaders[mode].dataset) if self.has(mode) else 0

    def order(self, mode: str) -> list[int]:
        """All indices, in a random order that is always the same."""
        generator = torch.Generator().manual_seed(0)
        size = self.size(mode)
        order: list[int] = self.once(
            ("order", mode), lambda: torch.randperm(size, generator=generator).tolist()
        )
        return order

    def fetch(self, mode: str, keys: Sequence[int]) -> Any:
        """The samples of some keys, as a loader fetches them (see `SeededDataset`).

        Each is seeded by itself, unless the dataset makes whole batches.
        """
        dataset = self.dataset(mode)
        own = dataset.dataset
        makes_batch = hasattr(own, "get_batch") or hasattr(own, "__getitems__")
        with self.stage(mode):
            if makes_batch:
                return dataset.__getitems__([*keys])
            return [dataset[key] for key in keys]

    def collate(self, mode: str, keys: Sequence[int]) -> Any:
        return self.loaders[mode].collate_fn(self.fetch(mode, keys))

    def batch_of(self, mode: str, keys: Sequence[int]) -> Any:
        """Samples by their keys, on the device."""
        with self.stage(mode):
            return to_device(self.trainer, copied(self.collate(mode, keys)))

    def batch(self, mode: str = "train", size: int = 13, skip: int = 0) -> Any:
        """A batch of its own on the device, of other samples for another `skip`.

        If there are too few samples it begins anew with the first, and has each once at most.
        """

        def make() -> Any:
            if self.has(mode):
                order, n = self.order(mode), self.size(mode)
                return self.batch_of(mode, [order[i % n] for i in range(skip, skip + min(size, n))])
            if self.loaders[mode] is None:
                raise CannotCheck("there is no validation data")
            with self.stage(mode):
                batch = first_samples(next(iter(self.loaders[mode])), size)
                return to_device(self.trainer, copied(batch))

        return copied(self.once(("batch", mode, size, skip), make))

    def two_batches(self, mode: str, size: int) -> tuple[Any, Any]:
        """Two batches of other samples but of the same shapes, also where sequences are padded.

        Raises:
            CannotCheck: If a batch has no part for each sample, as one of graphs.
        """
        if self.has(mode):
            size = min(size, max(1, self.size(mode) // 2))
        whole = self.batch(mode, 2 * size)
        if not isinstance(whole, Mapping):
            raise CannotCheck(f"a batch is a {type(whole).__name__}, not a dict")
        if any(t.ndim and len(t) != 2 * size for t in whole.values() if isinstance(t, Tensor)):
            raise CannotCheck("the tensors of a batch have different lengths: it can't be cut")

        def part(value: Any, first: int) -> Any:
            cut = isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 0)
            return value[first : first + size] if cut and len(value) == 2 * size else value

        first, second = ({k: part(v, i) for k, v in whole.items()} for i in (0, size))
        return first, copied(second)

    def many(self, mode: str) -> tuple[list[Any], list[int]]:
        """Batches of 64 of many samples, and the indices of these."""

        def make() -> tuple[list[Any], list[int]]:
            self.dataset(mode)
            parts, started_s = [], time.perf_counter()
            order = self.order(mode)[:N_SAMPLES]
            for i in range(0, len(order), 64):
                parts.append(self.collate(mode, order[i : i + 64]))
                if time.perf_counter() - started_s > SAMPLES_S:
                    break
            return parts, order[: 64 * len(parts)]

        return self.once(("many", mode), make)

    def stacked_by(self, mode: str, keys: Sequence[str]) -> tuple[dict[str, Tensor], list[int]]:
        """The tensors of some keys of many samples, (N, ...) on the CPU, and the N indices."""
        parts, order = self.many(mode)
        found: dict[str, Tensor] = {}
        for key in keys:
            if all(isinstance(part.get(key), Tensor) and part[key].ndim for part in parts):
                with contextlib.suppress(RuntimeError):  # of different lengths
                    found[key] = torch.cat([part[key] for part in parts]).cpu()
        whole = {key: value for key, value in found.items() if len(value) == len(order)}
        return whole, order

    def n_in(self, batch: Any) -> int:
        """Samples in a batch: the length of its first tensor; 0 if it has none."""
        return next((len(t) for t in tensors_in(batch).values() if t.ndim), 0)

    @contextlib.contextmanager
    def stage(self, mode: str) -> Iterator[None]:
        """What `trainer.training` and `trainer.validating` say."""
        state = self.trainer.state
        before = state.stage
        setattr(self.trainer, "training" if mode == "train" else "validating", True)
        try:
            yield
        finally:
            state.stage = before
