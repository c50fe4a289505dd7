"""BaseModule: from a project's hooks to a LightningModule."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric, MetricCollection, SumMetric

from lightning_trainer.base.hook_checks import require_hooks
from lightning_trainer.base.metrics import compute_metrics, named_metrics, update_metrics

Batch = dict[str, Any]


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
    arguments of `__init__`: call `self.save_hyperparameters()` there and read `self.hparams.NAME`.
    Any hook of `pl.LightningModule` can be overridden as well.

    Args:
        vis_iterations: Iterations between two calls of `visualise` in training; 0 never calls it.
        score_name: Name of the metric that decides which checkpoint is best, or "loss" for the
            validation loss; by default the first of `val_metrics` (a `MetricCollection` made from
            a dict sorts its names).
        score_mode: "max" if a higher score is better, else "min".
        channels_last: Lays the weights and activations of convolutions out as cuDNN and oneDNN
            prefer it; with `--trainer.precision bf16-mixed` about twice as fast.
        compile: Compiles `self.model` by `torch.compile`; the first iteration takes longer.
    """

    model: Any
    loss_fn: Any
    optimiser: Any
    scheduler: Any
    train_metrics: Any
    val_metrics: Any

    def __init__(
        self,
        vis_iterations: int = 500,
        score_name: str | None = None,
        score_mode: Literal["max", "min"] = "max",
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        require_hooks(type(self))
        self.model = self.loss_fn = self.optimiser = self.scheduler = None
        self.train_metrics = self.val_metrics = None
        if score_mode not in ("max", "min"):
            raise ValueError(f'`score_mode` is {score_mode!r}: it must be "max" or "min"')
        self.vis_iterations = vis_iterations
        self.score_name = score_name
        self.score_mode = score_mode
        self.channels_last = channels_last
        self.compiles = compile
        self.restored_iteration = 0
        self.train_results: dict[str, float] = {}
        self.n_evaluated = 0
        # A MeanMetric forgets its weights with "disable", without which it synchronises the device.
        self.val_loss = SumMetric(nan_strategy="disable")
        self.val_examples = SumMetric(nan_strategy="disable")

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets it some 40 times a step, at 2 us each by the way of `nn.Module`.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    # What a project writes ------------------------------------------------------------------------

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
        """

    @abstractmethod
    def create_metrics(self) -> None:
        """Sets `self.train_metrics` and `self.val_metrics`.

        Each is a torchmetrics `Metric`, or a `MetricCollection` whose names appear in the log; one
        may be a `.clone()` of the other. Train metrics are over all training batches since the last
        validation. Give classification metrics `validate_args=False`: the check synchronises the
        device in each batch.
        """

    @abstractmethod
    def forward_model(self, batch: Batch) -> Any:
        """Returns the model's output for `batch`, e.g. logits, float (B, K).

        Args:
            batch: What the loader made of the dataset's dicts, on the device: a dict of tensors
                whose first dimension is B.
        """

    @abstractmethod
    def forward_loss(self, batch: Batch, output: Any) -> Tensor:
        """Returns the loss, a scalar: the mean over the examples of `batch`.

        Args:
            batch: As for `forward_model`.
            output: What `forward_model` returned for it.
        """

    def update_metrics(self, metrics: Any, batch: Batch, output: Any) -> None:
        """Adds one batch to `metrics`; override it where the labels are elsewhere.

        Assumes that `batch` has "label", an integer tensor (B,).

        Args:
            metrics: `self.train_metrics` or `self.val_metrics`.
            batch: As for `forward_model`.
            output: What `forward_model` returned for it, detached.
        """
        update_metrics(metrics, output, batch["label"])

    def visualise(self, batch: Batch, output: Any, mode: str) -> None:
        """Draws on `self.tensorboard` at step `self.global_step`, e.g. by `add_images`.

        Called every `vis_iterations` with a training batch and at each validation with its first
        batch, on the first process.

        Args:
            batch: As for `forward_model`.
            output: What `forward_model` returned for it, detached.
            mode: "train" or "val".
        """

    # What is there to use -------------------------------------------------------------------------

    @property
    def tensorboard(self) -> Any:
        """The run's `torch.utils.tensorboard.SummaryWriter`; does nothing on other processes.

        Raises:
            RuntimeError: If the trainer has no TensorBoard logger.
        """
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger | DummyLogger):  # the latter in a fast_dev_run
                return logger.experiment
        raise RuntimeError(
            "`self.tensorboard` needs a TensorBoardLogger: the command line always has one, "
            "a `pl.Trainer` of your own takes it as `logger`"
        )

    def count_examples(self, batch: Batch) -> int:
        """Number of examples in `batch`. Assumes that its first tensor has shape (B, ...).

        Raises:
            TypeError: If there is no such tensor; then override it.
        """
        values = batch.values() if isinstance(batch, Mapping) else batch
        for value in values:
            if isinstance(value, Tensor) and value.ndim:
                return len(value)
        raise TypeError(
            f"`count_examples` of `{type(self).__name__}` finds no tensor of shape (B, ...) among "
            f"{[type(value).__name__ for value in values]}: override it to return B"
        )

    @property
    def score_key(self) -> str:
        """Name of the score among the logged numbers, e.g. "val/accuracy"."""
        name = self.score_name or next(iter(named_metrics(self.val_metrics)))
        return f"val/{name}"

    # How Lightning calls it -----------------------------------------------------------------------

    def configure_model(self) -> None:
        """Calls `create_model`, `create_loss` and `create_metrics`, once."""
        if self.model is not None:
            return
        self._call_hook("create_model", "model", nn.Module)
        model: Any = self.model
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        if self.compiles:
            model.compile()  # in place: the names of the weights stay
        self._call_hook("create_loss", "loss_fn", Callable)
        self._call_hook("create_metrics", "train_metrics", (Metric, MetricCollection))
        self._require("create_metrics", "val_metrics", (Metric, MetricCollection))
        self._check_metrics()

    def configure_optimizers(self) -> Any:
        """Calls `create_optimiser`."""
        self._call_hook("create_optimiser", "optimiser", torch.optim.Optimizer)
        if self.scheduler is None:
            return self.optimiser
        self._require("create_optimiser", "scheduler", LRScheduler)
        # A plateau scheduler is stepped in `on_validation_epoch_end`, before the checkpoint of that
        # validation is written, not by Lightning, which would need the metric again at a restart.
        config = {"scheduler": self.scheduler, "interval": "step", "reduce_on_plateau": False}
        return {"optimizer": self.optimiser, "lr_scheduler": config}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Steps the scheduler after an iteration, unless it waits for validations."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def forward(self, batch: Batch) -> Any:
        """The output of the model, as `forward_model`."""
        return self.forward_model(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Returns the loss, and the output where `visualise` will want it."""
        output, loss = self._forward(batch)
        detached = _detach(output)
        self.update_metrics(self.train_metrics, batch, detached)
        step: dict[str, Any] = {"loss": loss}
        if self.vis_iterations and (self.global_step + 1) % self.vis_iterations == 0:
            step["output"] = detached
        return step

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Adds the batch to `val_loss`, weighted by its examples, and to `val_metrics`."""
        output, loss = self._forward(batch)
        n_examples = torch.full_like(loss, self.count_examples(batch), dtype=torch.float32)
        self.val_loss.update(loss * n_examples)
        self.val_examples.update(n_examples)
        self.update_metrics(self.val_metrics, batch, output)
        return {"loss": loss, "output": output}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """As a validation step, on the test data."""
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        """The output of the model for the batch."""
        return self.forward_model(batch)

    def on_validation_epoch_end(self) -> None:
        """Turns the metrics into `val/...` and, over the training since then, `train/...`."""
        results = self._evaluation_results("val")
        train_results = compute_metrics(self.train_metrics, "train")
        fitting = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking
        if fitting and isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(results[self.score_key])
        # Not to the loggers: Lightning's step there is one less than the number of iterations done.
        self.log_dict(results | train_results, logger=False)
        self.train_results = {name: value.item() for name, value in train_results.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes which iteration the weights are of.

        Raises:
            ValueError: If they are those of another model; names the tensors that differ.
        """
        self.restored_iteration = checkpoint["global_step"]
        if self.strict_loading and "state_dict" in checkpoint:  # not in a sharded one
            self._check_weights(checkpoint["state_dict"])

    def on_test_epoch_end(self) -> None:
        """Turns the metrics into `test/...`."""
        self.log_dict(self._evaluation_results("test"), logger=False)

    # Checks ---------------------------------------------------------------------------------------

    def _forward(self, batch: Batch) -> tuple[Any, Tensor]:
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"a batch is a {type(batch).__name__}, not a dict: return a dict from the "
                'dataset\'s `__getitem__`, e.g. {"image": image, "label": label}'
            )
        output = self.forward_model(batch)
        loss = self.forward_loss(batch, output)
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise TypeError(
                f"`{type(self).__name__}.forward_loss` returned {got}, not a scalar tensor: "
                "average over the batch, e.g. `loss.mean()`"
            )
        return output, loss

    def _call_hook(self, hook: str, attribute: str, kind: Any) -> None:
        try:
            getattr(self, hook)()
        except AttributeError as ex:
            if self.hparams or "'AttributeDict'" not in str(ex):
                raise
            raise AttributeError(
                f"`{type(self).__name__}.{hook}` reads `self.hparams`, which is empty: call "
                "`self.save_hyperparameters()` in `__init__`"
            ) from ex
        self._require(hook, attribute, kind)

    def _require(self, hook: str, attribute: str, kind: Any) -> None:
        value = getattr(self, attribute)
        if value is None or not isinstance(value, kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join(k.__name__ for k in kinds).replace("Callable", "a callable")
            raise TypeError(
                f"`{type(self).__name__}.{hook}` left `self.{attribute}` as {value!r}: "
                f"assign {wanted} to it"
            )

    def _check_metrics(self) -> None:
        train, val = ({id(m) for m in metrics.modules()} for metrics in
                      (self.train_metrics, self.val_metrics))  # fmt: skip
        if train & val:
            raise ValueError(
                f"`{type(self).__name__}.create_metrics`: `train_metrics` and `val_metrics` share "
                "a metric, which would mix training and validation: use `.clone()` for one of them"
            )

    def _check_weights(self, loaded: Mapping[str, Tensor]) -> None:
        """Lightning would say so only after a traceback, with every tensor in one line."""
        own = self.state_dict()
        wrong = [f"`{name}` is not in the checkpoint" for name in own.keys() - loaded.keys()]
        wrong += [f"`{name}` is not in the model" for name in loaded.keys() - own.keys()]
        for name in own.keys() & loaded.keys():
            shapes = tuple(own[name].shape), tuple(loaded[name].shape)
            if shapes[0] != shapes[1]:
                wrong.append(f"`{name}` is {shapes[1]} in the checkpoint, {shapes[0]} in the model")
        if wrong:
            more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise ValueError(
                f"the checkpoint is of another model: {'; '.join(sorted(wrong)[:5])}{more}. Give "
                "the settings it was trained with, or start a new session without `--ckpt_path`"
            )

    def _check_score(self, results: dict[str, Tensor], mode: str) -> None:
        if self.score_key.replace("val/", f"{mode}/", 1) in results:
            return
        hook = f"`{type(self).__name__}.create_metrics`"
        names = [key.split("/", 1)[1] for key in results]
        if self.score_name in (None, *named_metrics(self.val_metrics)):
            raise TypeError(
                f"{hook}: the score `{self.score_key}` is no scalar: "
                "put a scalar metric first, or name one by `score_name`"
            )
        near = get_close_matches(str(self.score_name), names) or names
        raise ValueError(
            f"`score_name` is {self.score_name!r}, which `create_metrics` does not define: "
            f"use one of {', '.join(near)}"
        )

    def _evaluation_results(self, mode: str) -> dict[str, Tensor]:
        """The loss and the metrics of the evaluation that ends, as scalars; resets them."""
        results = compute_metrics(self.val_metrics, mode)
        n_examples = self.val_examples.compute()
        results[f"{mode}/loss"] = self.val_loss.compute() / n_examples
        self.n_evaluated = int(n_examples)
        self.val_loss.reset()
        self.val_examples.reset()
        self._check_score(results, mode)
        return results


def _detach(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach()
    return apply_to_collection(output, Tensor, Tensor.detach)
