"""What the checks need of a project: forward passes of its batches, and everything put back."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_trainer.base.losses import loss_of
from lightning_trainer.base.module import BaseModule
from lightning_trainer.base.sampling import seed_generators
from lightning_trainer.check.findings import CannotCheck, Finding
from lightning_trainer.check.limits import Patience, kept_generators
from lightning_trainer.check.nested import Recorder, copied
from lightning_trainer.check.supply import Supply

Load = tuple[str, int, list[str]]  # a class, the tensors given to it, the names it does not have
LIMIT_S = 60.0  # of all checks together


class Project(Supply):
    """A module, its data and its trainer, as they are when training is about to start."""

    def __init__(
        self,
        trainer: pl.Trainer,
        module: Any,
        loads: Sequence[Load] = (),
        val: Any = None,
        left_out: Sequence[type] = (),
    ) -> None:
        super().__init__(trainer, val)
        self.module = module
        self.loads = loads  # what was loaded with `strict=False`
        self.left_out = left_out  # the classes of the run's callbacks, which may change weights
        self.found: list[Finding] = []  # by the checks so far; `run_checks` adds to it
        self.training_modes = {layer: layer.training for layer in module.modules()}
        self._ends_s = time.perf_counter() + LIMIT_S

    @property
    def optimisers(self) -> list[Optimizer]:
        return [*self.trainer.optimizers]

    @property
    def groups(self) -> list[dict[str, Any]]:
        return [group for optimiser in self.optimisers for group in optimiser.param_groups]

    @property
    def held(self) -> list[Tensor]:
        """The tensors of all optimisers."""
        return [weight for group in self.groups for weight in group["params"]]

    @property
    def is_late(self) -> bool:
        """Whether the time of all checks together is over."""
        return time.perf_counter() > self._ends_s

    def patience(self, work_s: float) -> Patience:
        """For a part that may take so many seconds of work, within the time of all checks."""
        return Patience(work_s, self._ends_s)

    @property
    def has_own_step(self) -> bool:
        return type(self.module).training_step is not BaseModule.training_step

    def need_one_loss(self) -> None:
        """Raises CannotCheck if the project steps its optimisers itself."""
        if not self.module.automatic_optimization:
            raise CannotCheck("the project steps its optimisers itself")

    def need_usual_step(self) -> None:
        """Raises CannotCheck if the project trains in another way than by `forward_loss`."""
        self.need_one_loss()
        if self.has_own_step:
            raise CannotCheck("the project has a `training_step` of its own")

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
        keys = sorted({key for keys in self.keys() for key in keys})
        return self.once(("stacked", mode), lambda: self.stacked_by(mode, keys))

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

    def trained_loss(self, batch: Any, seed: int = 0) -> Any:
        """The loss that goes backward: of the project's own `training_step`, if it has one."""
        if not self.has_own_step:
            return self.forward(batch, seed=seed)[1]
        with self.training(seed), torch.enable_grad():
            return loss_of(self.module.training_step(batch, 0))

    def step(self, batch: Any, seed: int = 0, batch_idx: int = 0) -> Any:
        """Trains on a batch, in place; returns its loss, None if the project steps itself."""
        if not self.module.automatic_optimization:
            with self.training(seed), torch.enable_grad():
                self.module.training_step(batch, batch_idx)
            return None
        [optimiser] = self.optimisers
        losses: list[Any] = []

        def closure() -> Any:  # which LBFGS calls several times
            losses.append(self.trained_loss(batch, seed))
            optimiser.zero_grad()
            losses[-1].backward()
            if clip := self.trainer.gradient_clip_val:
                torch.nn.utils.clip_grad_norm_(self.held, clip)
            return losses[-1]

        optimiser.step(closure=closure)
        return losses[0].detach()

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

    def _restore_modes(self) -> None:
        for layer, training in self.training_modes.items():
            layer.training = training

    @contextlib.contextmanager
    def scratch(self) -> Iterator[None]:
        """Puts weights, buffers, optimisers, metrics and random streams back at its end."""
        layers = [*self.module.modules()]
        buffers = [(m, n, t) for m in layers for n, t in m.named_buffers(recurse=False)]
        held = [*self.module.parameters(), *(tensor for *_, tensor in buffers), *self.held]
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
            for layer, name, tensor in buffers:  # a forward pass may have put others in their place
                setattr(layer, name, tensor)
            for optimiser, state in zip(self.optimisers, states, strict=True):
                optimiser.load_state_dict(state)
            self.module.train_metrics.reset()
            self.module.val_metrics.reset()
            self._restore_modes()
