"""The parser of Lightning's commands, which suggests near names for unknown ones."""

import argparse
import sys
from pkgutil import iter_modules, resolve_name
from typing import Any, Literal, NoReturn

from jsonargparse import (
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    set_dumper,
    set_parsing_settings,
)
from jsonargparse.typing import PositiveFloat
from lightning.pytorch.cli import LightningArgumentParser

from lightning_trainer.commands.options import did_you_mean
from lightning_trainer.commands.registry import COMMANDS
from lightning_trainer.internals import option_names, prefer_whole_numbers
from lightning_trainer.session.imports import refused_import
from lightning_trainer.session.program import printed_command
from lightning_trainer.session.settings import dump_settings
from lightning_trainer.start.refusal import BASES, Refusal

# No setting may name what Python itself has for starting programs and running code: `os.system`.
set_parsing_settings(import_path_denylist=[])

AS_SETTINGS = "settings"  # a format of `dump`
set_dumper(AS_SETTINGS, dump_settings)

# Name, type, default and help of the options of a session.
SESSION_OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("tag", str, "run", "Name of the experiment."),
    ("output_path", str, "experiments", "Folder that holds the session folders."),
    ("save_minutes", float, 10.0, "Write last.ckpt at least this often, in minutes."),
    (
        *("init_from", str | None, None),
        "Weights to begin with, nothing else: a session, a checkpoint, a state dict, safetensors.",
    ),
    (
        *("on_non_finite", Literal["stop", "skip"], "stop"),
        "When the loss is no number: end the run, or go back to last.ckpt and go on.",
    ),
    (
        "fast_loop",
        bool,
        True,
        "false: Lightning's own loop runs the batches, with more time a step.",
    ),
    (
        *("matmul_precision", Literal["highest", "high", "medium"] | None, None),
        "Of float32 matrix products: high and medium use a GPU's tensor cores. null: torch's own.",
    ),
    (
        *("timeout_minutes", PositiveFloat, 30.0),
        "How long processes wait for one that does not start or answer.",
    ),
)

_PREDICT_DATA: tuple[str, Any, Any, str] = (
    *("predict_data", str | None, None),
    "Other data to predict: what the data class's `create_predict_data` is given.",
)


def session_options(command: str) -> list[tuple[str, Any, Any, str]]:
    """Name, type, default and help of a command's own options."""
    return [*SESSION_OPTIONS, *([_PREDICT_DATA] if command == "predict" else [])]


_OWN_OPTIONS = """
The options of a project's own classes:

    {command} --model.help projects.digits.DigitsModule
    {command} --data.help projects.digits.DigitsData
"""

_OF_FIT = """
Options that are typed, never in a file:

    --seeds 0,1,2          one run after the other; again: goes on with those that are not finished
    --on_event COMMAND     a shell command at a new best score, the end, a failure ($MESSAGE)
    --notify URL           a message by apprise then, e.g. ntfy://TOPIC; may be repeated
"""


def parser_arguments(command: str) -> dict[str, Any]:
    """Arguments of the parser, and of the command's parser under the command's name."""
    own = [_OWN_OPTIONS.format(command=command), *([_OF_FIT] if command == "fit" else [])]
    of_command = {
        "description": "\n".join([COMMANDS[command].summary, *own]),
        "usage": "%(prog)s [--config FILE] [--ckpt_path PATH] [--OPTION VALUE ...]",
    }
    # Without abbreviations: `--trainer.max_step 3` would silently set max_steps.
    return {"prog": printed_command(), "allow_abbrev": False, command: of_command}


class _Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of a description."""


class SessionParser(LightningArgumentParser):
    """Prints errors in one message with near names and where to read more."""

    refuses_null = False  # where the argument's type does; jsonargparse lets null through

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, formatter_class=_Formatter, **kwargs)

    def add_lightning_class_args(self, *args: Any, **kwargs: Any) -> list[str]:
        """Adds the options of the trainer, or of another class."""
        added = super().add_lightning_class_args(*args, **kwargs)
        prefer_whole_numbers(self)
        return added

    def validate(self, namespace: Namespace, skip_unset: bool = True, **kwargs: Any) -> None:
        """Checks the values; parsing calls it once it has them all."""
        super().validate(namespace, skip_unset and not self.refuses_null, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message and exits with code 2."""
        if not self.exit_on_error:  # an inner parser, for one of several types
            super().error(message, ex)
        program = self.prog.replace(" [options]", "")
        sys.stderr.write(f"error: {self.refusal_text(message, ex)}\n(more: {program} --help)\n")
        sys.exit(2)

    def refusal_text(self, message: str, ex: Exception | None = None) -> str:
        """The message of jsonargparse in one line, with near names or a remedy."""
        if reason := refused_import():  # jsonargparse hides it where an argument has several types
            message, ex = reason, None
        refusal = Refusal.read(message, ex)
        return f"{refusal.message}{self._suggestion(refusal)}"

    def _suggestion(self, refusal: Refusal) -> str:
        if refusal.is_incomplete:
            return ". Give `--config FILE`, or `--ckpt_path FOLDER` to go on with a session"
        if refusal.lacks:
            module, name = refusal.lacks
            if module in ("__main__", "__mp_main__"):
                return (
                    f": a notebook or script has defined `{name}`. Use the session there, or move "
                    "the class to a module and name that in config.yaml"
                )
            return did_you_mean(name, _module_names(module))
        wrong, path = refusal.unknown, refusal.class_path
        if not wrong:
            return ""
        known = class_options(path) if path else option_names(self)
        near = did_you_mean(wrong, {*known} - {wrong})
        if path and any(wrong in class_options(f"lightning_trainer.{base}") for base in BASES):
            return ": let `__init__` take **kwargs, and call `super().__init__(**kwargs)` in it"
        if refusal.is_option and not near and "." not in wrong:
            return f". Options of a project's classes are `--model.{wrong}` and `--data.{wrong}`"
        return near


def _module_names(name: str) -> set[str]:
    """The names in an imported module, and the modules in its folder."""
    module = sys.modules.get(name)
    modules = iter_modules(getattr(module, "__path__", ()))
    return {*dir(module), *(found.name for found in modules)}


def class_options(class_path: str) -> list[str]:
    """Names of the arguments of a class and its bases; empty if it can't be imported."""
    try:
        return list(
            ArgumentParser().add_class_arguments(resolve_name(class_path), fail_untyped=False)
        )
    except (ImportError, AttributeError, ValueError):
        return []


def check_nulls(group: str, settings: Any) -> None:
    """Refuses null, e.g. a YAML key without a value, for a class's argument that can't be None.

    jsonargparse treats such a null as an argument that was not given.

    Raises:
        ValueError: Names the argument.
    """
    arguments = settings.get("init_args")  # None or {} for a class without arguments
    arguments = vars(arguments) if isinstance(arguments, Namespace) else {}
    nulls = [name for name, value in arguments.items() if value is None]
    if not nulls:
        return
    parser = ArgumentParser(exit_on_error=False)
    others = {*arguments} - {*nulls}
    parser.add_class_arguments(resolve_name(settings.class_path), fail_untyped=False, skip=others)
    for argument in nulls:
        try:
            null = Namespace(**{argument: None})  # type: ignore[no-untyped-call]
            parser.validate(null, skip_unset=False, skip_required=True)
        except TypeError as ex:
            reason = " ".join(str(ex).split()).partition(": ")[2]
            raise ValueError(f"`{group}.{argument}` is null. {reason}") from ex
