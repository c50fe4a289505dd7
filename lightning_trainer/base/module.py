"""BaseModule: from a project's hooks to a LightningModule."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_trainer.base.batches import Batch, count, detach
from lightning_trainer.base.compiling import CompiledStep, Mode, output_and_loss
from lightning_trainer.base.hook_checks import (
    call_hook,
    check_weights,
    refuse_labels,
    require_hooks,
    require_override,
)
from lightning_trainer.base.losses import of_step
from lightning_trainer.base.metrics import named_metrics, update_metrics
from lightning_trainer.base.optimising import configure, optimise
from lightning_trainer.base.precision import make_metrics, metrics_apart
from lightning_trainer.base.predicting import default_columns
from lightning_trainer.base.results import LogResults
from lightning_trainer.base.tensorboard import writer_of
from lightning_trainer.internals_of_hooks import CURRENT_HOOK


class BaseModule(pl.LightningModule):
    """Base of a project's model: write the six abstract hooks, everything else exists.

    Hooks assign the attributes that their docstrings name. Order of a run:

        create_model, create_loss, create_metrics          (Lightning's configure_model)
        create_optimiser                                   (Lightning's configure_optimizers)
        for each batch: forward_model -> forward_loss -> backward -> optimiser step
                        update_metrics(train_metrics); visualise every `vis_iterations`
        at a validation, for each batch: forward_model -> forward_loss
                        update_metrics(val_metrics); visualise for the first batch
        after it: the score, best.ckpt and last.ckpt

    An iteration is one optimiser step, `self.global_step` their number. Hyper-parameters are the
    arguments of `__init__`: call `self.save_hyperparameters()` there and read `self.hparams.NAME`
    (a Path, an Enum or a dataclass is text or a dict in it: keep the argument itself). Any hook of
    `pl.LightningModule` can be overridden as well.

    Args:
        vis_iterations: Iterations between two calls of `visualise` in training; 0 never calls it.
        score_name: Name of the metric that decides which checkpoint is best, or "loss" for the
            validation loss, of a set "NAME/loss"; by default the first of `val_metrics`.
        score_mode: "max" or "min"; by default as the metric's `higher_is_better`, "min" of a loss.
        channels_last: Lays weights and activations of convolutions out as cuDNN and oneDNN like.
        compile: Mode of `torch.compile`, or true, for `forward_model` and `forward_loss` as one.
        fused: Makes Adam, AdamW and SGD fused on CUDA, where `create_optimiser` leaves that open.
    """

    model: Any
    loss_fn: Any
    optimiser: Any
    scheduler: Any
    train_metrics: Any
    val_metrics: Any
    examples_unit = "examples"  # of what `count_examples` counts

    def __init__(
        self,
        vis_iterations: int = 500,
        score_name: str | None = None,
        score_mode: Literal["max", "min"] | None = None,
        channels_last: bool = False,
        compile: bool | Mode = False,
        fused: bool = True,
    ) -> None:
        super().__init__()
        require_hooks(type(self))
        self.model = self.loss_fn = self.optimiser = self.scheduler = None
        self.train_metrics = self.val_metrics = None
        if score_mode not in ("max", "min", None):
            raise ValueError(f'`score_mode` is {score_mode!r}: it must be "max" or "min"')
        self.vis_iterations = vis_iterations
        self.score_name, self.score_mode = score_name, score_mode
        self.channels_last = channels_last
        self.__compiled: CompiledStep | None = None
        self.__compiles, self.__fuses = compile, fused  # `__`: no project takes these by chance

    def __setattr__(self, name: str, value: Any) -> None:
        if name == CURRENT_HOOK:  # faster than through `nn.Module`
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @abstractmethod
    def create_model(self) -> None:
        """Sets `self.model`, an `nn.Module`."""

    @abstractmethod
    def create_loss(self) -> None:
        """Sets `self.loss_fn`, a callable; an `nn.Module` moves to the device with the model."""

    @abstractmethod
    def create_optimiser(self) -> None:
        """Sets `self.optimiser`, a `torch.optim.Optimizer` over `self.model.parameters()`.

        Optionally sets `self.scheduler`, stepped after every iteration (a `ReduceLROnPlateau` after
        every validation, with the score). `self.trainer.max_steps` is the number of iterations.
        Called again to compare settings when a run goes on, so make new objects on each call.

        Several are a dict or a list. Then override `training_step`: it calls `self.optimise` for
        each and returns a dict of named losses. One call of it is one iteration.
        """

    @abstractmethod
    def create_metrics(self) -> None:
        """Sets `self.train_metrics` and `self.val_metrics`.

        Each is a torchmetrics `Metric`, or a `MetricCollection` whose names appear in the log; one
        may be a `.clone()` of the other. Train metrics are over all training batches since the last
        validation. On a GPU a metric may make the host wait in each batch; a run names such ones:
        by `validate_args`, `ignore_index`, and any multiclass `average` but "micro".
        """

    @abstractmethod
    def forward_model(self, batch: Batch) -> Any:
        """Returns the model's output, e.g. logits, float (B, K).

        `batch` is the loader's dict, on the device: tensors whose first dimension is B.
        """

    @abstractmethod
    def forward_loss(self, batch: Batch, output: Any) -> Tensor | dict[str, Tensor] | None:
        """Returns the loss, a scalar: the mean over the examples of `batch`.

        Or a dict of named ones, whose sum is the loss; each is logged, e.g. as "val/loss_NAME". In
        an evaluation (`not self.training`) None says that there is no loss.
        """

    def update_metrics(self, metrics: Any, batch: Batch, output: Any) -> None:
        """Adds a batch; override it where that has no "label", int (B,). `output` is detached."""
        try:
            labels = batch["label"]
        except (KeyError, TypeError, IndexError):
            refuse_labels(self, batch)
        update_metrics(metrics, output, labels)

    def visualise(self, batch: Batch, output: Any, mode: str) -> None:
        """Draws on `self.tensorboard` at step `self.global_step`, e.g. by `add_images`.

        Called on the first process with detached `output`, every `vis_iterations` for a training
        batch (`mode` "train"), and for a validation's first ("val", of several sets "val/NAME").
        """

    def prediction_columns(self, batch: Batch, output: Any) -> Mapping[str, Any]:
        """Columns of `predict`'s table, B values each, by name; see `default_columns`."""
        return default_columns(self, batch, output)

    @property
    def tensorboard(self) -> Any:
        """The run's `torch.utils.tensorboard.SummaryWriter`; does nothing on other processes."""
        return writer_of(self.trainer)

    def count_examples(self, batch: Batch) -> int:
        """Number of examples in `batch`; by default its first tensor has shape (B, ...).

        Means over an evaluation are weighted by it. Override it where a batch has no such tensor,
        or to count others, e.g. tokens with the class attribute `examples_unit = "tokens"`.
        """
        first = next(iter(batch.values())) if type(batch) is dict and batch else None
        return len(first) if isinstance(first, Tensor) and first.ndim else count(self, batch)

    @property
    def score_key(self) -> str:
        """Name of the score among the logged numbers, e.g. "val/accuracy"."""
        name = self.score_name or next(iter(named_metrics(self.val_metrics)))
        return f"val/{name}"

    def configure_model(self) -> None:
        """Calls `create_model`, `create_loss` and `create_metrics`, once."""
        if self.model is not None:
            return
        call_hook(self, "create_model", "model", nn.Module)
        model: Any = self.model
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        if self.__compiles:
            warms_up = type(self).validation_step is BaseModule.validation_step
            self.__compiled = CompiledStep(model, self.__compiles, warms_up)
        call_hook(self, "create_loss", "loss_fn", Callable)
        make_metrics(self)

    def configure_optimizers(self) -> Any:
        call_hook(self, "create_optimiser", "optimiser", (Optimizer, dict, list))
        if not isinstance(self.optimiser, Optimizer):
            require_override(self, "training_step", BaseModule)
        return configure(self, self.__fuses)

    def configure_callbacks(self) -> list[Callback]:
        """Adds `LogResults` where the trainer is not the command line's."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        return [] if any(isinstance(c, LogResults) for c in callbacks) else [LogResults()]

    def optimise(self, which: str | int, loss: Tensor) -> None:
        """Steps one of several optimisers, from `training_step`.

        `which` is its key or its position in `self.optimiser`. Its gradients are set to zero,
        `loss` goes backward, the gradients are clipped as `trainer.gradient_clip_val` says.
        """
        optimise(self, which, loss)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Steps the scheduler after an iteration; LogResults steps a `ReduceLROnPlateau`."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's, but metrics keep their precision, in which they add up many batches."""
        with metrics_apart(self):
            return super().to(*args, **kwargs)

    def forward(self, batch: Batch) -> Any:
        return self.forward_model(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Returns the losses, and the output for the batches that are visualised."""
        output, step = self._forward(batch)
        detached = detach(output)
        self.update_metrics(self.train_metrics, batch, detached)
        if self.vis_iterations and (self.global_step + 1) % self.vis_iterations == 0:
            step["output"] = detached
        return step

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        output, step = self._forward(batch)
        self.update_metrics(self.val_metrics, batch, output)
        return {**step, "output": output}

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        output = self.forward_model(batch)
        return self.__compiled.copied(output) if self.__compiled else output

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Loads weights; a ValueError names the tensors that do not fit the model."""
        if kwargs.get("strict", args[0] if args else True):
            check_weights(self.state_dict(), state_dict)
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _forward(self, batch: Batch) -> tuple[Any, dict[str, Any]]:
        run = self.__compiled.run if self.__compiled else output_and_loss
        output, loss = run(self, batch)
        if isinstance(loss, Tensor) and not loss.ndim:
            return output, {"loss": loss}
        return output, of_step(self, loss)
