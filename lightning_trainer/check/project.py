"""What the checks need of a project: batches, forward passes, and everything put back."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_trainer.base.module import BaseModule
from lightning_trainer.base.optimising import by_name
from lightning_trainer.base.sampling import SeededDataset, seed_generators
from lightning_trainer.check.findings import CannotCheck, Finding
from lightning_trainer.check.limits import kept_generators
from lightning_trainer.check.nested import Recorder, copied, first_loader, first_samples
from lightning_trainer.internals_of_graphs import to_device

Kind = TypeVar("Kind")
Load = tuple[str, int, list[str]]  # a class, the tensors given to it, the names it does not have
# Of this many samples at most, fetched within so many seconds, the checks of data look.
N_SAMPLES, SAMPLES_S = 20_000, 3.0


class Project:
    """A module, its data and its trainer, as they are when training is about to start.

    `mode` is "train" or "val". Of several sets of validation data the first one is looked at.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: Any,
        loads: Sequence[Load] = (),
        val: Any = None,
        callbacks_act: bool = False,
    ) -> None:
        self.trainer, self.module, self.data = trainer, module, trainer.datamodule  # type: ignore[attr-defined]
        self.loads = loads  # what was loaded with `strict=False`
        self.callbacks_act = callbacks_act  # whether one that is left out may freeze or add weights
        self.found: list[Finding] = []  # by the checks so far; `run_checks` adds to it
        self.loaders = {"train": trainer.train_dataloader, "val": first_loader(val)}
        self.training_modes = {layer: layer.training for layer in module.modules()}
        self._known: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Kind]) -> Kind:
        """What `make` returns, made at the first call with this key."""
        if key not in self._known:
            self._known[key] = make()
        known: Kind = self._known[key]
        return known

    @property
    def optimisers(self) -> list[Optimizer]:
        return [*by_name(self.module.optimiser).values()]

    @property
    def groups(self) -> list[dict[str, Any]]:
        return [group for optimiser in self.optimisers for group in optimiser.param_groups]

    def need_own_step(self) -> None:
        """Raises CannotCheck if the project trains in another way than by `forward_loss`."""
        if not self.module.automatic_optimization:
            raise CannotCheck("the project steps its optimisers itself")
        if type(self.module).training_step is not BaseModule.training_step:
            raise CannotCheck("the project has a `training_step` of its own")

    # Data

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
        """The samples of some keys, as a loader fetches them (see `SeededDataset`)."""
        dataset = self.dataset(mode)
        many = getattr(dataset, "__getitems__", None)
        with self.stage(mode):
            return many([*keys]) if many else [dataset[key] for key in keys]

    def collate(self, mode: str, keys: Sequence[int]) -> Any:
        return self.loaders[mode].collate_fn(self.fetch(mode, keys))

    def batch(self, mode: str = "train", size: int = 13, skip: int = 0) -> Any:
        """A batch of its own on the device, of other samples for another `skip`.

        It is smaller if there are too few samples.
        """

        def make() -> Any:
            with self.stage(mode):
                if self.has(mode):
                    batch = self.collate(mode, self.order(mode)[skip : skip + size])
                elif self.loaders[mode] is None:
                    raise CannotCheck("there is no validation data")
                else:
                    batch = first_samples(next(iter(self.loaders[mode])), size)
                return to_device(self.trainer, copied(batch))

        return copied(self.once(("batch", mode, size, skip), make))

    def two_batches(self, mode: str, size: int) -> tuple[Any, Any]:
        """Two batches of other samples but of the same shapes, also where sequences are padded."""
        if self.has(mode):
            size = min(size, max(1, self.size(mode) // 2))
        whole = self.batch(mode, 2 * size)
        if not isinstance(whole, Mapping):
            raise CannotCheck(f"a batch is a {type(whole).__name__}, not a dict")

        def part(value: Any, first: int) -> Any:
            cut = isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 0)
            return value[first : first + size] if cut and len(value) == 2 * size else value

        first, second = ({k: part(v, i) for k, v in whole.items()} for i in (0, size))
        return first, copied(second)

    def next_batch(self, keys: Sequence[int]) -> Any:
        """Training samples by their keys, on the device."""
        with self.stage("train"):
            return to_device(self.trainer, self.collate("train", keys))

    def keys(self) -> tuple[list[str], list[str]]:
        """The keys of a batch that `forward_model` reads, and those that only the loss reads."""

        def make() -> tuple[list[str], list[str]]:
            batch = self.batch()
            if not isinstance(batch, Mapping):
                raise CannotCheck(f"a batch is a {type(batch).__name__}, not a dict")
            inputs, targets = Recorder(batch), Recorder(self.batch())
            with self.scratch(), torch.no_grad(), self.evaluating(seed=0):
                self.module.forward_loss(targets, self.module.forward_model(inputs))
            return sorted(inputs.read), sorted(targets.read - inputs.read or targets.read)

        return self.once("keys", make)

    def stacked(self, mode: str) -> tuple[dict[str, Tensor], list[int]]:
        """Inputs and targets of many samples, (N, ...) on the CPU by key, and their N indices."""
        return self.once(("stacked", mode), lambda: self._stack(mode))

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

    def _stack(self, mode: str) -> tuple[dict[str, Tensor], list[int]]:
        parts, order = self.many(mode)
        found: dict[str, Tensor] = {}
        for key in sorted({key for keys in self.keys() for key in keys}):
            if all(isinstance(part.get(key), Tensor) and part[key].ndim for part in parts):
                with contextlib.suppress(RuntimeError):  # of different lengths
                    found[key] = torch.cat([part[key] for part in parts]).cpu()
        n = min((len(value) for value in found.values()), default=0)
        return {key: value for key, value in found.items() if len(value) == n}, order[:n]

    # Forward passes

    def forward(
        self, batch: Any, training: bool = True, seed: int = 0, grad: bool = True
    ) -> tuple[Any, Any]:
        """Output and loss of a batch, which it may change; the loss is None if there is none."""
        setting = self.training(seed) if training else self.evaluating(seed)
        with setting, torch.set_grad_enabled(grad):
            output = self.module.forward_model(batch)
            return output, self.loss(batch, output)

    def loss(self, batch: Any, output: Any) -> Any:
        loss = self.module.forward_loss(batch, output)
        return sum(loss.values()) if isinstance(loss, Mapping) else loss

    @contextlib.contextmanager
    def evaluating(self, seed: int) -> Iterator[None]:
        self.module.eval()
        seed_generators(seed, self.module.device)
        with self.stage("val"), self.trainer.precision_plugin.forward_context():
            yield

    @contextlib.contextmanager
    def training(self, seed: int) -> Iterator[None]:
        self._restore_modes()
        seed_generators(seed, self.module.device)
        with self.stage("train"), self.trainer.precision_plugin.forward_context():
            yield

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

    def _restore_modes(self) -> None:
        for layer, training in self.training_modes.items():
            layer.training = training

    @contextlib.contextmanager
    def scratch(self) -> Iterator[None]:
        """Puts weights, buffers, optimisers, metrics and random streams back at its end."""
        held = [*self.module.parameters(), *self.module.buffers()]
        held += [weight for group in self.groups for weight in group["params"]]
        values = [tensor.detach().clone() for tensor in held]
        states = [copied(optimiser.state_dict()) for optimiser in self.optimisers]
        try:
            with kept_generators():
                yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(held, values, strict=True):
                    tensor.copy_(value)
                    tensor.grad = None
            for optimiser, state in zip(self.optimisers, states, strict=True):
                optimiser.load_state_dict(state)
            self.module.train_metrics.reset()
            self.module.val_metrics.reset()
            self._restore_modes()
