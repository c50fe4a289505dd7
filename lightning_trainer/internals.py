"""Every private part of Lightning, torch, torchmetrics, jsonargparse, argparse that is touched.

Each function names the private part, the reason, and the version since which it is known. Each has
a test that fails when a newer version has changed the part.
"""

import argparse
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from torchmetrics import Metric, MetricCollection


def stop_asking_for_sigterm(trainer: "pl.Trainer") -> Callable[[], None]:
    """Keeps Lightning from asking all processes about SIGTERM before each batch.

    Lightning 2.6: `_broadcast_sigterm_tensor` waits for the device at each batch, and hangs if
    more than one process got the signal. Returns a function that restores it.
    """
    of_loop: Any = vars(trainer.fit_loop.epoch_loop)
    of_loop["_broadcast_sigterm_tensor"] = lambda: None
    return lambda: of_loop.pop("_broadcast_sigterm_tensor", None)


def decide_validation(trainer: "pl.Trainer", due: bool) -> None:
    """Lets Lightning validate after the current batch, or not.

    Lightning 2.0 computes `val_check_batch` once, when it makes the loaders, and validates after
    each batch whose number is a multiple of it.
    """
    trainer.val_check_batch = 1 if due else sys.maxsize


def validation_is_due(trainer: "pl.Trainer") -> bool:
    """Whether a validation follows the current batch.

    Lightning 2.0: only `_should_check_val_fx` of its loop knows all the reasons for one.
    """
    fit_loop: Any = trainer.fit_loop
    return bool(fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher))


def run_validation(trainer: "pl.Trainer") -> None:
    """Runs a validation now, before the first batch.

    Lightning 2.6: a restored loop can only finish a validation that was begun: with the number of
    batches that were left, but from the start of the data. Afterwards the loop is told that it has
    not run: else no epoch would follow one that ended with this validation. What the epoch has
    logged goes on, as after any validation.
    """
    val_loop: Any = trainer.fit_loop.epoch_loop.val_loop
    connector: Any = trainer._logger_connector
    logging_from = connector._first_loop_iter
    val_loop.restarting, trainer.validating = False, True
    val_loop.run()
    trainer.training, connector._first_loop_iter = True, logging_from
    val_loop._has_run = False
    val_loop.reset_restart_stage()


def restore_loaders(trainer: "pl.Trainer") -> None:
    """Loads the state of training loaders where Lightning has not, and when they are made anew.

    Lightning 2.6 loses the state if something asked for the length of the run before the checkpoint
    was read, and in a run by epochs between two epochs.
    """
    fit_loop: Any = trainer.fit_loop
    if fit_loop._combined_loader_states_to_load:
        fit_loop._combined_loader._load_state_dicts(fit_loop._combined_loader_states_to_load)
        fit_loop._combined_loader_states_to_load = []
        iter(fit_loop._data_fetcher)
    if every := trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
        fit_loop._last_train_dl_reload_epoch -= trainer.current_epoch % every


def end_epoch(trainer: "pl.Trainer") -> None:
    """Lets a restored loop, whose batches are all done, go straight to the end of its epoch.

    Lightning 2.6 looks for a validation to finish, then for a batch, unless this one has run.
    """
    trainer.fit_loop.epoch_loop.val_loop._has_run = True


def allow_iterations(trainer: "pl.Trainer", n_more: int) -> None:
    """Adds to the number of iterations after which the loop is done.

    Lightning 2.0 does not run a loop at all that is done at its start.
    """
    trainer.fit_loop.epoch_loop.max_steps += n_more


def set_timeout(strategy: Any, timeout: Any) -> None:
    """Lets processes wait so long, if not given otherwise. Lightning 2.0: `_timeout` is 30 min."""
    if getattr(strategy, "_timeout", None) == timedelta(minutes=30):
        strategy._timeout = timeout


def reopen(logger: Any, folder: object) -> None:
    """Lets a TensorBoardLogger go on in `folder`. Lightning 2.0: `_experiment` is the writer."""
    logger._experiment, logger._root_dir = None, str(folder)


def is_open(logger: Any) -> bool:
    """Whether a TensorBoardLogger has opened its file. Lightning 2.0: `experiment` opens it."""
    return logger._experiment is not None


def add_summary(logger: Any, summary: Any) -> None:
    """Adds a part of TensorBoard's table of runs.

    torch 2.0: `SummaryWriter.add_hparams` would open a second file.
    """
    logger.experiment._get_file_writer().add_summary(summary)


# torchmetrics 1.0: numbers that a metric keeps about itself, beside what it measures.
METRIC_COUNTERS = ("_update_count", "_computed", "_forward_cache", "training")


def set_update_count(metric: "Metric", n_updates: int) -> None:
    """Marks a metric whose state was restored as updated; torchmetrics 1.0 has no public way."""
    metric._update_count = n_updates


def was_updated(metric: "Metric") -> bool:
    """Whether a metric, or one within it, has seen a batch.

    torchmetrics 1.0: a metric around others counts no updates, `Running` has a count of its own.
    """
    counts = ("_update_count", "_num_vals_seen")
    return any(getattr(m, name, 0) for m in metric.modules() for name in counts)


def update_groups(metrics: "MetricCollection", *args: Any) -> None:
    """`metrics.update(*args)`, at one metric's cost for all metrics that share their state.

    torchmetrics 1.0 updates one metric of a group and copies its state to each other one, at 20 us.
    It does so again when they are read, if `_computed` and `_state_is_copy` are reset as here.
    """
    if not metrics._groups_checked:  # the first update finds the groups
        metrics.update(*args)
        return
    for names in metrics.compute_groups.values():
        getattr(metrics, names[0]).update(*args)
    for metric in metrics._modules.values():
        vars(metric)["_computed"] = None
    metrics._state_is_copy = False


def is_compiled(module: Any) -> bool:
    """Whether a module, or one within it, is compiled.

    torch 2.2: `Module.compile` keeps its result in `_compiled_call_impl`.
    """
    import torch

    compiled = torch._dynamo.OptimizedModule
    return any(isinstance(m, compiled) or m._compiled_call_impl for m in module.modules())


def let_step_unscale(optimiser: Any, unscales: bool) -> None:
    """Tells a GradScaler that a fused step skips infinite gradients itself, without a wait for it.

    torch 2.0: `_step_supports_amp_scaling`, which the constructor of a fused optimiser sets. Where
    it is set, Lightning 2.6 refuses to clip gradients, even without a GradScaler.
    """
    optimiser._step_supports_amp_scaling = unscales


def nccl_failure() -> str:
    """What NCCL, if the processes talk by it, has noticed: "COMM_ERROR", ...; empty if nothing.

    torch 2.7: `get_error` of a process group's backend. It tells within a second what the watchdog
    of torch tells a minute later, by ending the process. Only the group of all processes is asked.
    """
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or not dist.is_nccl_available():
        return ""
    if "nccl" not in dist.get_backend_config():
        return ""
    backend = dist.group.WORLD._get_backend(torch.device("cuda"))  # type: ignore[union-attr]
    failure = backend.get_error() if hasattr(backend, "get_error") else None
    return "" if failure is None or failure.name == "SUCCESS" else str(failure.name)


def seed_gpu(index: int, seed: int) -> None:
    """Seeds one GPU's generator.

    torch 2.0: before CUDA starts, `torch.cuda.manual_seed` queues each call with a traceback.
    """
    import torch

    torch.cuda.default_generators[index].manual_seed(seed)


def option_names(parser: argparse.ArgumentParser) -> set[str]:
    """Names of the options and commands of a parser, with the options of its commands.

    Python 3.10: `_actions` and `_SubParsersAction`; argparse has no public way to list them.
    """
    names: set[str] = set()
    for action in parser._actions:
        names.update(option.lstrip("-") for option in action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            names.update(action.choices, *map(option_names, action.choices.values()))
    return names


def prefer_whole_numbers(parser: argparse.ArgumentParser) -> None:
    """Lets each option that takes whole numbers and fractions keep a whole one.

    Python 3.10: typing gives an equal `Optional[Union[float, int]]` that was made before, e.g. by
    torchmetrics, for Lightning's `Optional[Union[int, float]]`. jsonargparse 4.53 takes the first
    type of an option, `_typehint`, that fits: of `limit_train_batches` 1, a batch, it makes 1.0,
    all of them.
    """
    for action in parser._actions:
        kinds = get_args(getattr(action, "_typehint", None))
        if int in kinds and float in kinds:
            vars(action)["_typehint"] = reduce(or_, sorted(kinds, key=lambda k: k is not int))


def root_cause(ex: BaseException) -> BaseException:
    """The error below jsonargparse's report of all the types that it tried.

    jsonargparse 4.51: the report is a general exception, which only its words identify.
    """
    while ex.__cause__ is not None and (
        "Does not validate against any" in str(ex) or isinstance(ex, argparse.ArgumentError)
    ):
        ex = ex.__cause__
    return ex
