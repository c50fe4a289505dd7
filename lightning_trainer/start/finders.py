"""Tuner callbacks search once, before the run, and what they find is a setting from then on."""

import sys
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder

from lightning_trainer.checkpoints.beginning import BeginModel
from lightning_trainer.checkpoints.restart import Restart
from lightning_trainer.run.state import RunState
from lightning_trainer.session.environment import is_first_process
from lightning_trainer.start.launch import n_processes

_BASES = (LearningRateFinder, BatchSizeFinder)


def check_finders(config: Namespace) -> None:
    """Refuses a search whose result can't become a setting; warns of one in midst of training.

    Raises:
        ValueError: Names the callback and the remedy.
    """
    finders, others = _split(config)
    for finder in finders:
        if n_processes(config.trainer.as_dict()) > 1:
            raise ValueError(
                f"`{_name(finder)}` searches with one process: let it search in a run with "
                "`--trainer.devices 1`, and give what it finds to this one"
            )
        if not _settings_of(finder, config):
            raise ValueError(
                f"`{_name(finder)}` has no setting to find: no argument of "
                f"`{config.model.class_path}` or `{config.data.class_path}` has a name that it "
                "looks for. Give the name by its `attr_name` or `batch_arg_name`"
            )
    for callback in filter(_is_finder, others if is_first_process() else ()):
        print(
            f"warning: `{_name(callback)}` searches in the midst of training: what it finds is not "
            "in config.yaml, and a restart may not be exact",
            file=sys.stderr,
        )


def keep_found(config: Namespace, restart: Restart) -> list[str]:
    """Takes tuner callbacks out of a run that starts from a checkpoint, which has what they found.

    That wins over the command line, where a job that is queued again names both.

    Returns:
        A line for each.
    """
    lines = []
    finders, others = _split(config)
    if finders:
        config.trainer.callbacks = others or None
    for finder in finders:
        for group, name in _settings_of(finder, config):
            stored = restart.config.get(group, {}).get("init_args", {})
            value = stored.get(name, config[group].init_args[name])
            config[group].init_args[name] = value
            lines.append(f"{_name(finder)} does not search again: {group}.{name} is {value}")
    return lines


def begin_search(config: Namespace) -> Callable[[list[Callback]], None] | None:
    """Leaves nothing but tuner callbacks among the callbacks of parsed settings.

    Returns:
        A function for the end of their search, which gets them as objects: it makes what they have
        found settings, and puts the other callbacks back. None if there are none.
    """
    finders, others = _split(config)
    if not finders or config.trainer.fast_dev_run:
        return None
    config.trainer.callbacks = finders

    def end(searched: list[Callback]) -> None:
        for finder, callback in zip(finders, searched, strict=True):
            _take_over(config, finder, _found(callback))
        config.trainer.callbacks = others or None

    return end


def search_arguments(run: RunState, finders: list[Callback]) -> dict[str, Any]:
    """Arguments of a trainer that does nothing but search, and leaves nothing but its result."""
    begin = BeginModel(run)
    begin.tells = False  # the run itself does
    return {
        "logger": False,
        "callbacks": [begin, *finders, _EndSearch()],
        "enable_checkpointing": False,
        "default_root_dir": str(run.session.path),  # for the weights, to which Lightning goes back
        "num_sanity_val_steps": 0,
        "profiler": None,
        "max_time": None,
        "min_steps": None,
        "min_epochs": None,
    }


class _EndSearch(Callback):
    """Ends the run once the callbacks before it have searched."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = True

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        """Keeps the weights alone: hyper-parameters may be of classes that are not loaded again."""
        for key in ("hyper_parameters", "datamodule_hyper_parameters"):
            checkpoint.pop(key, None)


def _split(config: Namespace) -> tuple[list[Any], list[Any]]:
    """The settings of callbacks that search before the run, and of all others."""
    callbacks = config.trainer.callbacks or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    finders = [c for c in callbacks if _is_finder(c) and _searches_first(c)]
    return finders, [c for c in callbacks if c not in finders]


def _take_over(config: Namespace, finder: Namespace, value: float | int | None) -> None:
    for group, name in _settings_of(finder, config):
        arguments = config[group].init_args
        found = f"{group}.{name}: {arguments[name]} -> {value}"
        if value is None:
            found = f"found nothing; {group}.{name} stays {arguments[name]}"
        elif _arguments(finder).get("update_attr", True):
            arguments[name] = value
        else:
            found = f"found {value}; {group}.{name} stays {arguments[name]} (`update_attr`)"
        print(f"{_name(finder)}: {found}", flush=True)


def _is_finder(callback: Any) -> bool:
    kind = resolve_name(callback.class_path) if isinstance(callback, Namespace) else None
    return isinstance(kind, type) and issubclass(kind, _BASES)


def _searches_first(callback: Namespace) -> bool:
    """Whether it is not derived to search elsewhere, in the midst of training."""
    start = resolve_name(callback.class_path).on_fit_start
    return any(start is base.on_fit_start for base in _BASES)


def _settings_of(finder: Namespace, config: Namespace) -> list[tuple[str, str]]:
    """The group and name of each argument that the finder sets."""
    arguments = _arguments(finder)
    given = arguments.get("attr_name") or arguments.get("batch_arg_name")
    for name in [given] if given else ["lr", "learning_rate"]:  # in Lightning's order
        groups = [g for g in ("model", "data") if name in _arguments(config[g])]
        if groups:
            return [(group, name) for group in groups]
    return []


def _arguments(settings: Namespace) -> Any:
    return settings.get("init_args") or {}


def _found(callback: Callback) -> float | int | None:
    if isinstance(callback, BatchSizeFinder):
        return callback.optimal_batch_size
    searched = callback.optimal_lr if isinstance(callback, LearningRateFinder) else None
    return searched.suggestion() if searched else None


def _name(finder: Namespace) -> str:
    return str(finder.class_path).rpartition(".")[2]
