"""BaseDataModule: from `create_data` to loaders that go on where they stopped."""

import math
import os
import signal
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sized
from time import perf_counter
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_trainer.base.copying import CopyAhead
from lightning_trainer.base.hook_checks import (
    check_dataset,
    refuse_several,
    require_hooks,
)
from lightning_trainer.base.predicting import refuse_predict_data
from lightning_trainer.base.sampling import ExactSampler, SeededDataset
from lightning_trainer.session.slow_start import begin_step


class SessionLoader(DataLoader[Any]):
    """A DataLoader that knows how many samples were used and can go on from there.

    Lightning finds `state_dict` and `load_state_dict`, keeps the state in each checkpoint and
    restores it before the first batch.
    """

    sampler: ExactSampler
    restored: dict[str, int] | None = None  # the state that was loaded
    fetch_started_s = 0.0  # by `perf_counter`, when the newest batch was asked for
    on_fetch: Callable[[], None] | None = None  # is called then
    copy_ahead: CopyAhead | None = None  # on a GPU; without it each batch is copied when it is used

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Iterator[Any] = super().__iter__()
        if self.copy_ahead:
            batches = self.copy_ahead(batches)
        while True:
            self.fetch_started_s = perf_counter()
            if self.on_fetch:
                self.on_fetch()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.sampler.advance()
            yield batch
            del batch  # its memory may serve the next one

    def state_dict(self) -> dict[str, int]:
        """Samples: used so far by all processes, over all epochs; of the data; of a batch."""
        sampler = self.sampler
        return {
            "samples": sampler.position,
            "n_samples": sampler.n_samples,
            "batch_size": sampler.global_batch_size,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on at the same sample of the same epoch, also if their number has changed."""
        self.restored, n_samples = state, self.sampler.n_samples
        epoch, offset = divmod(state["samples"], state.get("n_samples", n_samples))
        self.sampler.position = epoch * n_samples + min(offset, n_samples)

    def n_batches_left(self) -> int:
        """Batches of the epoch that are left."""
        left = self.sampler.n_samples - self.sampler.position % self.sampler.n_samples
        return math.ceil(left / self.sampler.global_batch_size)


class BaseDataModule(pl.LightningDataModule):
    """Base of a project's data: write `create_data`, and `prepare_data` if something is downloaded.

    Order of a run: `prepare_data` (one process of each node), `create_data` (every process), then
    the loaders are built from the datasets that it set.

    Args:
        batch_size: Samples a process takes at a time.
        n_workers: Processes that fetch batches in advance; 0 fetches in the main process.
    """

    train_dataset: Dataset[Any] | None = None
    val_dataset: Dataset[Any] | None = None
    test_dataset: Dataset[Any] | None = None
    predict_dataset: Dataset[Any] | None = None

    def __init__(self, batch_size: int = 128, n_workers: int = 2) -> None:
        super().__init__()
        require_hooks(type(self))
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}: it must be at least 1")
        if n_workers < 0:
            raise ValueError(f"`n_workers` is {n_workers}: it must be 0 or more")
        self.batch_size = batch_size
        self.n_workers = n_workers
        self.__created = False  # two underscores: a name that no project can take by chance

    @abstractmethod
    def create_data(self) -> None:
        """Sets `self.train_dataset` and `self.val_dataset`.

        Optionally sets `self.test_dataset` and `self.predict_dataset`. Each is a map-style dataset
        of dicts ("image": uint8 (C, H, W), "label": an int, ...), or to validate or test with a
        dict of such datasets. Called once in every process; download in `prepare_data`.

        A dataset may make a whole batch at once by `get_batch(indices, seeds)`, which returns a
        dict of tensors, with `n_workers` 0 also tensors on the GPU. `indices` and `seeds` are int64
        (B,). A seed depends on the run's seed, the epoch and the sample; use it for that sample's
        random transforms (as in `random_crop_and_flip`). Or it may have torch's
        `__getitems__(indices)`, and `collate_fn(samples)` to make the batch from the result.
        """

    def create_predict_data(self, path: str) -> None:
        """Sets `self.predict_dataset` to the samples at a path, for `predict --predict_data PATH`.

        Called after `create_data`.
        """
        refuse_predict_data(self, path)

    def setup(self, stage: str) -> None:
        """Calls `create_data`, for readers of the datasets before the loaders are made."""
        self._create_once()

    def train_dataloader(self) -> Any:
        """Shuffled batches of `train_dataset`. Override it for a loader of your own.

        `docs/loaders.md` says which of those go on exactly.
        """
        # Lightning's overfit_batches asks for the same few batches in every epoch.
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        return self.create_loader("train_dataset", shuffle=not overfit)

    def val_dataloader(self) -> Any:
        """All of `val_dataset` in its own order; a dict of loaders for one of datasets."""
        return self._create_loaders("val_dataset")

    def test_dataloader(self) -> Any:
        return self._create_loaders("test_dataset")

    def predict_dataloader(self) -> Any:
        return self.create_loader("predict_dataset", shuffle=False)

    def create_loader(self, attribute: str, shuffle: bool) -> DataLoader[Any]:
        """The loader of one dataset. Override it to change all loaders at once.

        Args:
            attribute: Of the dataset, e.g. "train_dataset", or "val_dataset.NAME" in a dict.
            shuffle: A new order every epoch, and the position kept over a restart; else the
                dataset's own order, each sample exactly once. Ignored for an `IterableDataset`,
                which has its own order and starts anew with each run.

        Raises:
            ValueError: If the dataset is not set, empty, or none.
        """
        dataset, trainer = self._get_dataset(attribute), self.trainer
        device = trainer.strategy.root_device if trainer else torch.device("cpu")
        on_gpu = device.type == "cuda"
        options = _options(dataset, self.batch_size, self.n_workers, on_gpu)
        if isinstance(dataset, IterableDataset):
            return DataLoader(dataset, **options)
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # set by Lightning's seed_everything
        replicas = (trainer is not None and trainer.distributed_sampler_kwargs) or {}
        n_samples = len(cast(Sized, dataset))
        sampler = ExactSampler(n_samples, self.batch_size, seed, shuffle, **replicas)
        # By name, because Lightning reads them to make another loader for `predict`.
        options |= {"dataset": SeededDataset(dataset, seed), "sampler": sampler}
        if not shuffle:
            return DataLoader(**options)
        loader = SessionLoader(**options)
        if on_gpu and trainer and not _see_batch_on_host(self, trainer.lightning_module):
            # What workers fetch is settled long before. Without them a dataset may look at what the
            # step before has changed: nothing is fetched early.
            loader.copy_ahead = CopyAhead(device, n_ahead=min(self.n_workers, 1))
        return loader

    def _create_loaders(self, attribute: str) -> Any:
        self._create_once()
        names = _names(getattr(self, attribute))
        if not names:
            return self.create_loader(attribute, shuffle=False)
        return {name: self.create_loader(f"{attribute}.{name}", False) for name in names}

    def _create_once(self) -> None:
        if not self.__created:
            begin_step("`create_data`")
            self.create_data()
            self.__created = True

    def _get_dataset(self, attribute: str) -> Dataset[Any]:
        self._create_once()  # a project may override `setup`
        of_all, _, name = attribute.partition(".")
        dataset = getattr(self, of_all)
        if _names(dataset):
            dataset = dataset[name] if name else refuse_several(self, attribute, "dict")
        if isinstance(dataset, list | tuple) and dataset and isinstance(dataset[0], Dataset):
            refuse_several(self, attribute, "list")
        check_dataset(self, attribute, dataset)
        return cast("Dataset[Any]", dataset)


def _names(dataset: Any) -> list[str]:
    """The names in a dict of datasets; a dict with other keys may be a dataset itself."""
    is_dict = isinstance(dataset, Mapping) and all(isinstance(name, str) for name in dataset)
    return [*dataset] if is_dict else []


def _options(dataset: Any, batch_size: int, n_workers: int, on_gpu: bool) -> dict[str, Any]:
    makes_batch = hasattr(dataset, "get_batch")
    collate = _unchanged if makes_batch else getattr(dataset, "collate_fn", None)
    pins_itself = on_gpu and makes_batch and not n_workers
    return {
        "batch_size": batch_size,
        "num_workers": n_workers,
        "collate_fn": _pin if pins_itself else collate,
        "pin_memory": on_gpu and not pins_itself,
        "persistent_workers": n_workers > 0,
        "worker_init_fn": _leave_signals_to_main_process,
        "generator": Generator(),  # its own: iterating must not draw from the global one
    }


def _see_batch_on_host(*owners: Any) -> bool:
    """Whether a project's hook gets the batch before it is on the device."""
    hooks = ("on_before_batch_transfer", "transfer_batch_to_device")
    return any(is_overridden(hook, owner) for hook in hooks for owner in owners)


def _unchanged(batch: Any) -> Any:
    return batch


def _pin(batch: Any) -> Any:
    """Pins what is in host memory; torch's loader would refuse a tensor on the GPU."""
    return apply_to_collection(batch, Tensor, lambda t: t.pin_memory() if t.is_cpu else t)


def _leave_signals_to_main_process(worker_id: int) -> None:
    # A terminal sends Ctrl-C, and a scheduler SIGTERM, to the whole process group. A worker that
    # dies of it leaves the main process without its batch, before that has saved.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_main_process, daemon=True).start()


def _obey_main_process() -> None:
    """Ends this worker on SIGTERM from the main process, which sends it at its exit."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
