"""Which sample comes when: a pure function of seed, epoch, position and process.

Nothing here draws from a global random stream or depends on the number of workers. A stopped run
therefore goes on with the samples and random transforms of an uninterrupted one. The only state is
one integer: the samples used so far.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, get_worker_info

from lightning_trainer.internals import seed_gpu

_GPU_IN_WORKER = (
    "`get_batch` uses a GPU, which it can't in a worker: set `--data.n_workers 0`, or let it "
    "return tensors in host memory"
)


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63): the first bytes of BLAKE2b (RFC 7693) over the parts.

    The parts are e.g. the run's seed, a purpose, an epoch and an index.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_generators(seed: int, device: torch.device | None = None) -> None:
    """Seeds the random generators of torch, numpy and Python, on the CPU and on `device` if a GPU.

    `torch.manual_seed` is not used: it costs 0.3 ms a call where CUDA is built in but not started,
    against 2 us for the CPU's generator alone.
    """
    torch.default_generator.manual_seed(seed)
    for seed_one in _SEED.values():
        seed_one(seed)
    if device is not None and device.type == "cuda":
        seed_gpu(device.index or 0, seed)


# To seed takes 2 us for numpy's generator and 6 us for Python's, to draw a number much less.
_SEED: dict[str, Callable[[int], object]] = {
    "numpy": lambda seed: np.random.seed(seed & 0xFFFFFFFF),
    "python": random.seed,
}
_DRAW: dict[str, Callable[[], float]] = {
    "numpy": np.random.random_sample,
    "python": random.random,
}
_PROBE = 0
_FIRST = {
    "numpy": np.random.RandomState(_PROBE).random_sample(),
    "python": random.Random(_PROBE).random(),
}


class ExactSampler(DistributedSampler[Any]):
    """The keys of one process's samples, epoch after epoch.

    A key is `epoch * n_samples + index`, which `SeededDataset` decodes. The order of an epoch is
    cut into global batches of `batch_size * num_replicas` samples. Each process takes its slice of
    each, so a global batch holds the same samples for any number of processes. The last, smaller
    one is split evenly. Lightning leaves a `DistributedSampler` in place: hence the base class.

    Args:
        n_samples: Size of the dataset.
        batch_size: Samples a process takes at a time.
        seed: Of the run.
        shuffle: A new order every epoch (training), or the dataset's own (evaluation).
        num_replicas: Processes that share the data.
        rank: This process among them.

    Raises:
        ValueError: If there are fewer samples than processes.
    """

    def __init__(
        self,
        n_samples: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        if n_samples < num_replicas:
            raise ValueError(
                f"a dataset of {n_samples} samples can't be shared by {num_replicas} processes: "
                "give it more samples or use fewer devices"
            )
        super().__init__(
            cast("Dataset[Any]", range(n_samples)), num_replicas, rank, shuffle=shuffle, seed=seed
        )
        self.n_samples = n_samples
        self.batch_size = batch_size
        self.global_batch_size = batch_size * num_replicas  # samples of all processes at a time
        self.position = 0

    def __len__(self) -> int:
        """Samples of this process in a whole epoch."""
        n_whole, rest = divmod(self.n_samples, self.global_batch_size)
        last = self._slice(n_whole * self.global_batch_size) if rest else range(0)
        return n_whole * self.batch_size + len(last)

    def __iter__(self) -> Iterator[int]:
        """The rest of the epoch that `position` lies in."""
        epoch, offset = divmod(self.position, self.n_samples)
        keys = self._keys(epoch)
        for start in range(offset, self.n_samples, self.global_batch_size):
            part = self._slice(start)
            yield from keys[part.start : part.stop]

    def advance(self) -> None:
        """Notes that all processes took their slice of one more global batch."""
        offset = self.position % self.n_samples
        self.position += min(self.global_batch_size, self.n_samples - offset)

    def set_epoch(self, epoch: int) -> None:
        """Ignored: the epoch follows from `position`."""

    def begin_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch that is not reached yet."""
        self.position = max(self.position, epoch * self.n_samples)

    def _slice(self, start: int) -> range:
        """This process's positions within the global batch that begins at `start`."""
        size = min(self.global_batch_size, self.n_samples - start)
        if self.shuffle and size < self.num_replicas:
            # Every process must take part in each training step, so some of the epoch's last
            # samples are seen twice. Evaluation never repeats one.
            i = start + self.rank % size
            return range(i, i + 1)
        first = start + size * self.rank // self.num_replicas
        return range(first, start + size * (self.rank + 1) // self.num_replicas)

    def _keys(self, epoch: int) -> Sequence[int]:
        first = epoch * self.n_samples
        if not self.shuffle:
            return range(first, first + self.n_samples)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        order = torch.randperm(self.n_samples, generator=generator)
        return cast("list[int]", (first + order).tolist())


class SeededDataset(Dataset[Any]):
    """Decodes the keys of `ExactSampler` and seeds the random transforms of each sample by its key.

    Workers then need no random state of their own: their number, prefetching and persistence can't
    change a sample. Seeding costs 2 us a sample, and 9 us more where the dataset draws from numpy's
    or Python's generators, which is found out: a batch that is the first to draw from one is read
    again. A dataset with `__getitems__(indices)` or `get_batch(indices, seeds)` is seeded once a
    batch. The latter also gets a seed for each sample, int64 (B,), so its draws do not depend on
    the other samples. Assumes a map-style dataset.
    """

    _drawn: frozenset[str] | None = None  # generators seen to be drawn from; before any batch None

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self._n_samples = len(cast(Sized, dataset))
        # An attribute of the instance, because its mere presence tells the loader to use it.
        if hasattr(dataset, "get_batch"):
            self._base = derive_seed(seed, "samples")
            self.__getitems__ = self._get_batch
        elif hasattr(dataset, "__getitems__"):
            self.__getitems__ = self._fetch_batch
        else:
            self.__getitems__ = self._fetch_each

    def __len__(self) -> int:
        return self._n_samples

    def __getitem__(self, key: int) -> Any:
        seed_generators(derive_seed(self.seed, "sample", key))
        return self.dataset[key % self._n_samples]

    def _fetch_each(self, keys: list[int]) -> list[Any]:
        """The samples as `__getitem__` returns them, for less where they leave a generator alone.

        Such a generator is not seeded for each sample, but once a batch. If it then draws another
        number than its first one, a sample has used it after all.
        """
        if self._drawn is None:  # the first sample tells of most datasets
            self._drawn = frozenset()
            return self._fetch_each(keys[:1]) + (self._fetch_each(keys[1:]) if keys[1:] else [])
        seeds = [derive_seed(self.seed, "sample", key) for key in keys]
        while True:
            left_alone = [name for name in _FIRST if name not in self._drawn]
            for name in left_alone:
                _SEED[name](_PROBE)
            samples = []
            for key, seed in zip(keys, seeds, strict=True):
                torch.default_generator.manual_seed(seed)
                for name in self._drawn:
                    _SEED[name](seed)
                samples.append(self.dataset[key % self._n_samples])
            drawn = [name for name in left_alone if _DRAW[name]() != _FIRST[name]]
            if not drawn:
                break
            self._drawn = self._drawn.union(drawn)
        for name in left_alone:  # what collates the samples may draw, as after the last one
            _SEED[name](seeds[-1])
        return samples

    def _fetch_batch(self, keys: list[int]) -> Any:
        seed_generators(derive_seed(self.seed, "sample", keys[0]))
        return self.dataset.__getitems__([key % self._n_samples for key in keys])  # type: ignore[attr-defined]

    def _get_batch(self, keys: list[int]) -> Any:
        seed_generators(derive_seed(self.seed, "sample", keys[0]))
        at = torch.from_numpy(np.array(keys))  # a fifth of the time of `torch.tensor`
        get_batch = self.dataset.get_batch  # type: ignore[attr-defined]
        if get_worker_info() is not None:
            get_batch = partial(_without_gpu, get_batch)
        return get_batch(at % self._n_samples, at ^ self._base)


def _without_gpu(get_batch: Callable[..., Any], indices: Tensor, seeds: Tensor) -> Any:
    """Calls `get_batch` in a worker; a RuntimeError names the remedy if it uses a GPU.

    A forked process can't use one, and torch can't pin what a process of another kind returns.
    """
    try:
        batch = get_batch(indices, seeds)
    except RuntimeError as ex:
        if "CUDA" in str(ex):
            raise RuntimeError(_GPU_IN_WORKER) from ex
        raise
    values = batch.values() if isinstance(batch, Mapping) else ()
    if not all(value.is_cpu for value in values if isinstance(value, Tensor)):
        raise RuntimeError(_GPU_IN_WORKER)
    return batch
