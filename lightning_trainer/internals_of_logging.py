"""Every private part of Lightning's logging that is touched, under the rules of internals.py."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _Metadata,
    _ResultMetric,
    _Sync,
)
from torchmetrics import Metric


class StepCount(int):
    """Lightning's count of steps, which tells the iteration that it is used for.

    Whoever is given one knows that the number is Lightning's and not a project's own.
    """

    iteration: Callable[[], int]

    def __add__(self, other: int) -> "StepCount":
        made = StepCount(int.__add__(self, other))  # twice a step: it is kept short
        made.iteration = self.iteration
        return made

    def __sub__(self, other: int) -> "StepCount":
        return self + -other


def tell_iterations(trainer: pl.Trainer, iteration: Callable[[], int]) -> None:
    """Makes Lightning's count of steps a `StepCount`.

    Lightning 1.6: `_batches_that_stepped` is the step of its rows, and of those of its callbacks.
    It is raised after a batch's hooks and validation, so that they stand at one less.
    """
    loop = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped = count = StepCount(loop._batches_that_stepped)
    count.iteration = iteration


def count_steps(trainer: pl.Trainer) -> None:
    """Sets the count of steps of a restored loop.

    Lightning 2.6 saves it before it is raised, or at the end of a run after that, and raises it
    when the loop starts, unless the checkpoint is of an epoch's end. Here this is foreseen.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    automatic = trainer.lightning_module.automatic_optimization
    done = trainer.global_step if automatic else loop.batch_progress.total.processed
    raised = loop.restarting and not loop._should_accumulate() and not loop.restarted_on_last
    loop._batches_that_stepped += done - raised - loop._batches_that_stepped


def is_accumulating(trainer: pl.Trainer) -> bool:
    """Whether the newest batch has added to gradients without a step.

    Lightning 2.0: only `_should_accumulate` knows of an epoch's last batch.
    """
    return trainer.fit_loop._should_accumulate()


def call_after_batch(trainer: pl.Trainer, hook: Callable[[], None]) -> Callable[[], None]:
    """Calls `hook` once the numbers of a training batch are logged.

    Lightning 2.0 has no hook there: `update_train_step_metrics` logs them after the last one.
    Returns a function that restores it.
    """
    connector: Any = trainer._logger_connector
    log, epoch_loop = connector.update_train_step_metrics, trainer.fit_loop.epoch_loop

    def log_and_call() -> None:
        if epoch_loop._results:  # else it finds nothing to log, after some 20 calls
            log()
        hook()

    connector.update_train_step_metrics = log_and_call
    return lambda: vars(connector).pop("update_train_step_metrics", None)


def leave_logged_in_place() -> Callable[[], None]:
    """Keeps Lightning from moving what it keeps of a logged name to the device where it already is.

    Lightning 2.0: `_ResultMetric.to` copies the arguments of `self.log` at each call of it, which
    takes most of its time. Returns a function that restores it.
    """
    kind: Any = _ResultMetric
    move = kind.to

    def move_if_needed(self: Any, *args: Any, **options: Any) -> Any:
        is_there = self.is_tensor and not options and (self.value.device,) == args
        return self if is_there else move(self, *args, **options)

    kind.to = move_if_needed
    return lambda: setattr(kind, "to", move)


# Lightning 2.0: the arguments of `self.log` in what it keeps of a name, `_Metadata` and `_Sync`.
_ARGUMENTS = (
    *("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph"),
    *("add_dataloader_idx", "dataloader_idx", "metric_attribute"),
)


def logged_numbers(trainer: pl.Trainer) -> dict[str, dict[str, Any]]:
    """What `self.log` has collected in the epoch so far, by hook and name.

    Lightning 2.0: `_results`, in which each name is a `_ResultMetric`. Its sums, and the newest
    value, which is logged again where a step logs none. No checkpoint of Lightning has them.
    """
    return {
        key: {
            "arguments": {name: getattr(kept.meta, name) for name in _ARGUMENTS},
            "reduce_fx": kept.meta.reduce_fx.__name__,
            "sync_dist": kept.meta.sync.should,
            "rank_zero_only": kept.meta.sync.rank_zero_only,
            "sums": kept.metric_state if kept.is_tensor else None,
            "newest": kept._forward_cache,
        }
        for key, kept in trainer.fit_loop.epoch_loop._results.items()
        if not kept.has_reset
    }


def restore_logged(trainer: pl.Trainer, numbers: dict[str, dict[str, Any]]) -> None:
    """Lets `self.log` go on with numbers of an epoch, on the device.

    Lightning 2.0 begins an epoch's sums anew at the first batch of a loop: `_first_loop_iter`. A
    name that is logged again takes the arguments that it is now given; one that is not, since its
    hook has run in this epoch, has those of before.
    """
    results: Any = trainer.fit_loop.epoch_loop._results
    made = {key: _result_metric(trainer, saved) for key, saved in numbers.items()}
    restored = {key: kept for key, kept in made.items() if kept is not None}
    results.update(restored)
    trainer._logger_connector._first_loop_iter = False
    log, update = results.log, results.update_metrics

    def log_again(fx: str, name: str, *args: Any, **kwargs: Any) -> None:
        if f"{fx}.{name}" in restored:
            results.pop(f"{fx}.{name}")
        log(fx, name, *args, **kwargs)

    def update_again(key: str, *args: Any) -> None:
        before, now = restored.pop(key, None), results[key]
        if before is not None and before.is_tensor and now.is_tensor:
            same = before.meta.reduce_fx is now.meta.reduce_fx
            vars(now).update(before.to(now.value.device).metric_state if same else {})
        update(key, *args)

    results.log, results.update_metrics = log_again, update_again


def _result_metric(trainer: pl.Trainer, saved: dict[str, Any]) -> Any:
    meta = _Metadata(**saved["arguments"], reduce_fx=saved["reduce_fx"])
    sync_dist = saved["sync_dist"] and trainer.world_size > 1
    rank_zero_only = saved["rank_zero_only"]
    meta.sync = _Sync(trainer.strategy.reduce, sync_dist, rank_zero_only=rank_zero_only)
    kept: Any = _ResultMetric(meta, saved["sums"] is not None)
    if kept.is_tensor:
        vars(kept).update(saved["sums"])
    else:
        modules = dict(trainer.lightning_module.named_modules())
        kept.value = modules.get(saved["arguments"]["metric_attribute"])
        if kept.value is None:  # the project has given it another name since then
            return None
    kept._forward_cache, kept._update_count = saved["newest"], 1
    return kept.to(trainer.strategy.root_device)


def metrics_of_validation(trainer: pl.Trainer) -> list[Metric]:
    """The metrics that `self.log` was given in a validation, and that Lightning resets after it.

    Lightning 2.0: `_results` of its loop.
    """
    results = trainer.fit_loop.epoch_loop.val_loop._results
    return [kept.value for kept in results.values() if not (kept.is_tensor or kept.has_reset)]


def hide_in_events(writer: Any, hide: Callable[[bytes], bytes]) -> None:
    """Replaces secrets in the names and texts that a SummaryWriter writes from now on.

    torch 2.0: all of them go through `add_event` of its `file_writer`.
    """
    add, names = writer.file_writer.add_event, dict[str, str]()

    def add_hidden(event: Any, *args: Any, **kwargs: Any) -> None:
        for value in event.summary.value:
            if value.tag not in names:
                names[value.tag] = hide(value.tag.encode()).decode()
            value.tag = names[value.tag]
            if value.HasField("tensor"):
                value.tensor.string_val[:] = map(hide, value.tensor.string_val)
        add(event, *args, **kwargs)

    writer.file_writer.add_event = add_hidden
