"""FollowLoaders: a training loader of a project's own goes on where it stopped."""

import contextlib
import hashlib
import math
import os
import sys
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities import CombinedLoader
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_trainer.base.data import BaseDataModule, SessionLoader
from lightning_trainer.base.sampling import derive_seed, seed_generators
from lightning_trainer.run.state import RunCallback
from lightning_trainer.session.checkpoint_header import KEY, layer_state

_NOT_KEPT = "random numbers of its workers, a buffer of shuffled samples, or a generator of its own"


class FollowedLoader(CombinedLoader):
    """Loaders whose fetches are seeded by their position in the run, and are one batch ahead.

    Lightning is one batch ahead in loaders without a length; here it is so in those with one too.
    """

    seed: Callable[..., None]  # by a purpose and a position
    progress: Any  # of the run, as Lightning counts its batches
    states: list[Any] | None = None  # of the loaders that have one, before the newest fetch
    ahead: Any = None  # the batch of the newest fetch; None at the end
    _n_fetched = 0  # batches of the run
    _n_left: float = 0  # batches that may be fetched; the end of a loader is asked for as a batch
    _sized = _held = False

    def __iter__(self) -> "FollowedLoader":
        """Begins an epoch; after a restart, goes on with one.

        If the restart is at an epoch's end, what comes now is the next epoch's first batch in some
        loaders, and in others nothing: then they begin anew for the next epoch.
        """
        if self._held and not self.progress.is_last_batch:
            return self
        self.begin(self.progress.total.ready, self.progress.current.ready)
        if self.progress.is_last_batch and self._n_left:
            self._fetch()
            self._held = self.ahead is not None
        elif self._sized:
            self._fetch()
        return self

    def begin(self, n_used: int, n_of_epoch: int = 0) -> None:
        """Begins to iterate, after so many batches of the run and of the epoch."""
        self._n_fetched, self.ahead, self._held = n_used, None, False
        self.seed("loaders", n_used)
        for loader in self.flattened:
            if not _has_state(loader) and getattr(loader, "generator", None):
                loader.generator.manual_seed(torch.initial_seed())
        super().__iter__()
        length, lengths = sized_len(self), [sized_len(loader) for loader in self.flattened]
        self._sized = length is not None
        self._n_left = math.inf if lengths == [length] else (length or 0) - n_of_epoch

    def __next__(self) -> Any:
        if not self._sized and not self._held:  # Lightning holds the batch before
            self._fetch()
        self._held = False
        batch = self.ahead
        if batch is None:
            raise StopIteration
        if self._sized:
            self._fetch()
        return batch

    def reset(self) -> None:
        self.ahead = None
        super().reset()

    def lack(self) -> str:
        """Names the first loader without a state; empty if there is none."""
        lacking = [type(loader).__name__ for loader in self.flattened if not _has_state(loader)]
        return lacking[0] if lacking else ""

    def digest(self) -> str:
        """Identifies the newest batch; empty at the end."""
        found = hashlib.blake2b(digest_size=16)

        def add(value: Any) -> None:
            if isinstance(value, Tensor):
                value = value.detach().cpu().reshape(-1).view(torch.uint8).numpy()
            found.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())

        if self.ahead is None:
            return ""
        apply_to_collection(self.ahead[0], (Tensor, np.ndarray, int, float, str, bytes), add)
        return found.hexdigest()

    def _fetch(self) -> None:
        self.states = [
            deepcopy(loader.state_dict()) for loader in self.flattened if _has_state(loader)
        ]
        self.seed("fetch", self._n_fetched)
        self.ahead = None
        if self._n_left:
            with contextlib.suppress(StopIteration):
                self.ahead = super().__next__()
        self._n_fetched += 1
        self._n_left -= 1


class FollowLoaders(RunCallback):
    """Keeps the states of a project's own loaders, and seeds what they draw in this process.

    A loader with a length but without a state is read again from the start of its epoch. Whether a
    restart is exact is seen by the first batch: a checkpoint identifies the one that must come.
    """

    _loaders: FollowedLoader | None = None
    _next = ""  # the digest of the batch that must come

    def setup(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        make, seed = data.train_dataloader, int(os.environ.get("PL_GLOBAL_SEED", 0))

        def make_and_follow() -> Any:
            every = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
            epoch = trainer.current_epoch // every * every if every else 0
            if type(data).train_dataloader is not BaseDataModule.train_dataloader:
                seed_generators(derive_seed(seed, "make loaders", epoch))
            return self._follow(trainer, make(), seed)

        data.train_dataloader = make_and_follow
        self.run.at_end(lambda: vars(data).pop("train_dataloader", None))

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        saved = layer_state(checkpoint).get("loaders")
        if saved and len(saved) == trainer.world_size:
            own = saved[trainer.global_rank]
            self._next = own["next"]
            checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = own["states"]

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        """Adds what each process has; all meet here."""
        loaders = self._loaders
        if loaders is not None and loaders.states is not None:
            own = {"states": loaders.states, "next": loaders.digest()}
            checkpoint[KEY]["loaders"] = saved = self.run.processes.gather(own)
            checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = saved[0]["states"]

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._loaders is not None and self.run.goes_on:
            reasons = self.run.processes.gather(self._catch_up(trainer, self._loaders))
            self.run.loader_faults = [*dict.fromkeys(filter(None, reasons))]

    def _follow(self, trainer: pl.Trainer, loaders: Any, seed: int) -> Any:
        if isinstance(loaders, SessionLoader):
            return loaders
        combined = loaders
        if not isinstance(loaders, CombinedLoader):
            combined = CombinedLoader(loaders, "max_size_cycle")  # as Lightning does
        self._loaders = followed = FollowedLoader([])
        vars(followed).update(vars(combined))
        rank, device = trainer.global_rank, trainer.strategy.root_device
        followed.seed = lambda *at: seed_generators(derive_seed(seed, *at, rank), device)
        followed.progress = trainer.fit_loop.epoch_loop.batch_progress
        return followed

    def _catch_up(self, trainer: pl.Trainer, loaders: FollowedLoader) -> str:
        """Reads batches again where there is no state; returns why a restart is not exact."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        n_done = 0 if progress.is_last_batch else progress.current.ready
        lacking = loaders.lack()
        if lacking and not n_done:
            return ""  # each epoch begins anew
        if lacking and (loaders.states or trainer.num_training_batches == float("inf")):
            return f"`{lacking}` has no `state_dict`, so it starts again from its beginning"
        if lacking:
            if trainer.is_global_zero:
                print(f"Reading {n_done} batches of `{lacking}` again", file=sys.stderr, flush=True)
            loaders.begin(progress.total.ready - n_done)
            for _ in range(n_done + 1):
                loaders._fetch()
        if self._next and loaders.digest() != self._next:
            name = lacking or type(loaders.flattened[0]).__name__
            return f"`{name}` gives another batch than was due: a checkpoint lacks {_NOT_KEPT}"
        return ""


def _has_state(loader: Any) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
