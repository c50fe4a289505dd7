"""Refuses settings that can't work before a session folder is made."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from jsonargparse import Namespace

from lightning_trainer.checkpoints.restart import Restart
from lightning_trainer.checkpoints.weights import check_init_from
from lightning_trainer.session.folder import check_tag
from lightning_trainer.session.secrets import check_complete, hide
from lightning_trainer.start.finders import check_finders
from lightning_trainer.start.parser import check_nulls


def check_settings(
    config: Any, command: str, restart: Restart | None, secrets: Sequence[str] = ()
) -> None:
    """Checks the parsed settings (`config`) of a command ("fit", "test", ...).

    Raises:
        ValueError: Names the setting, its value and the remedy.
    """
    if restart is None:
        _check_variables(config.as_dict())
    _check_paths(config, secrets)
    if not isinstance(config.trainer, Namespace):
        raise ValueError(f"`trainer` is {config.trainer!r}: it must be a group of settings")
    check_complete(config.as_dict())
    for name, value in vars(config.trainer).items():
        if value != value:
            raise ValueError(f"`trainer.{name}` is {value}: give a number, or null for none")
    if config.trainer.barebones:
        raise ValueError(
            "`trainer.barebones` is True, which is a trainer without a log, checkpoints and "
            "validations: leave it out, or measure with a `pl.Trainer` of your own"
        )
    check_nulls("model", config.model)
    check_nulls("data", config.data)
    _check_validations(config.trainer)
    if config.init_from is not None:
        check_init_from(config.init_from, restart)
    if command == "fit" and restart is None:
        check_finders(config)
    wanted = config.trainer.max_steps
    if command == "fit" and (wanted == 0 or (restart and not restart.is_before(wanted))):
        done = restart.iteration if restart else 0
        raise ValueError(
            f"nothing left to do: iteration {done} of {wanted} is reached. To go on, raise "
            f"`--trainer.max_steps` above {done}"
        )


def _check_paths(config: Any, secrets: Sequence[str]) -> None:
    check_tag(config.tag)
    if not config.output_path:
        raise ValueError("`output_path` is empty: give the folder that holds the sessions")
    for name in ("tag", "output_path"):
        if hide(config[name], secrets) != config[name]:
            raise ValueError(f"`{name}` has a secret in it, which paths would show: give another")


def _check_variables(settings: dict[str, Any]) -> None:
    """Refuses `${HOME}` and the like, which would be taken as it stands."""
    for key, text in _texts(settings):
        if found := re.search(r"\$\{[^{}]+\}", text):
            raise ValueError(
                f"`{key}` has {found[0]} in it, and settings have no variables: give the value, "
                f'or let the shell do so by an option in double quotes, --{key} "...$NAME..."'
            )


def _texts(settings: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts in settings, each with its key as it is typed."""
    if isinstance(settings, str):
        yield key, settings
    elif isinstance(settings, dict):
        for name, value in settings.items():
            inner = f"{key}.{name}" if key else str(name)
            yield from _texts(value, inner.removesuffix(".init_args"))
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _texts(value, key)


def _check_validations(trainer: Namespace) -> None:
    interval = trainer.val_check_interval
    if isinstance(interval, int | float) and not interval > 0:
        raise ValueError(
            f"`trainer.val_check_interval` is {interval}: give a number of iterations, and "
            "`trainer.limit_val_batches: 0` for no validation"
        )
    if isinstance(interval, float) and trainer.check_val_every_n_epoch is None:
        raise ValueError(
            f"`trainer.val_check_interval` is {interval}, a part of an epoch: set "
            "`trainer.check_val_every_n_epoch: 1` as well, or give a whole number of iterations"
        )
