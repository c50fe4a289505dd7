"""Command-line errors in a few lines, with the near names."""

import argparse
import importlib
import pkgutil
import re
import sys
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lightning_trainer.commands.options import did_you_mean

_UNKNOWN = re.compile(
    r"unrecognized arguments: --(?P<option>[^\s=]+)|does not accept option '(?P<key>[^']+)'"
    r"|Option '(?P<argument>[^']+)' is not accepted|invalid choice: '(?P<command>[^']+)'"
)
_ABSENT = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_CLASS_PATH = re.compile(r"class_path '([^']+)'")

_COMMANDS = {
    "fit": "Trains a model: a new session, or with --ckpt_path one that goes on.",
    "validate": "Scores a session's best checkpoint on the validation data.",
    "test": "Scores a session's best checkpoint on the test data.",
    "predict": "Writes a session's best checkpoint's outputs to predictions.pt.",
}

_OTHER_COMMANDS = ("verify", "new", "sessions", "compare")  # each with a parser of its own

_OWN_OPTIONS = """
The options of a project's own classes:

    {command} --model.help projects.digits.DigitsModule
    {command} --data.help projects.digits.DigitsData
"""


def help_texts() -> dict[str, dict[str, str]]:
    """What `--help` of each command says first."""
    return {
        command: {
            "description": description + "\n" + _OWN_OPTIONS.format(command=command),
            "usage": "%(prog)s [--config FILE] [--ckpt_path PATH] [--OPTION VALUE ...]",
        }
        for command, description in _COMMANDS.items()
    }


class _Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of a description."""


class SessionParser(LightningArgumentParser):
    """Says in one message what was wrong, which name was probably meant, and where to read more."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, formatter_class=_Formatter, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message and exits with code 2."""
        if not self.exit_on_error:  # a parser within the parser, for one of several types
            super().error(message, ex)
        if ex is not None and (cause := root_cause(ex)) is not ex:
            where = re.match(r'Parser key "([^"]+)"', message)
            message = f"`{where[1]}`: {cause}" if where else str(cause)
        message = re.sub(r"\s*\n\s*", " ", message.strip()) + self._suggestion(message)
        message = re.sub(r"<class '([\w.]+)'>", r"\1", message)
        message = re.sub(r'Parser key "([^"]+)"', r"`\1`", message)
        program = self.prog.replace(" [options]", "")
        sys.stderr.write(f"error: {message}\n(more: python {program} --help)\n")
        sys.exit(2)

    def _suggestion(self, message: str) -> str:
        if "arguments are required" in message:
            return ". Give `--config FILE`, or `--ckpt_path FOLDER` to go on with a session"
        if absent := _ABSENT.search(message):
            return did_you_mean(get_close_matches(absent[2], _module_names(absent[1])))
        found = _UNKNOWN.search(message)
        if not found:
            return ""
        wrong = next(name for name in found.groups() if name)
        class_path = _CLASS_PATH.search(message)
        known = class_options(class_path[1]) if class_path else self._options()
        near = get_close_matches(wrong, {*known} - {wrong}, n=3, cutoff=0.6)
        if found["option"] and not near and "." not in wrong:
            return f". Options of a project's classes are `--model.{wrong}` and `--data.{wrong}`"
        return did_you_mean(near)

    def _options(self) -> set[str]:
        """Names of the options and commands of this parser and of those of its commands."""
        names: set[str] = set()
        for action in self._actions:
            names.update(option.lstrip("-") for option in action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                names.update(action.choices, _OTHER_COMMANDS)
                for parser in action.choices.values():
                    names |= parser._options()
        return names


def _module_names(name: str) -> set[str]:
    """What a module that was imported has, with the modules in its folder."""
    module = sys.modules.get(name)
    modules = pkgutil.iter_modules(getattr(module, "__path__", ()))
    return {*dir(module), *(found.name for found in modules)}


def class_options(class_path: str) -> list[str]:
    """Names of the arguments of a class, its bases' included; none if it can't be imported."""
    module, _, name = class_path.rpartition(".")
    try:
        cls: Any = getattr(importlib.import_module(module), name)
        return list(ArgumentParser().add_class_arguments(cls, fail_untyped=False))
    except (ImportError, AttributeError, ValueError):
        return []


def check_nulls(group: str, settings: Any) -> None:
    """Refuses null, e.g. a key of a YAML file without a value, where a class takes none.

    jsonargparse takes a null among a class's arguments for one that was not given.

    Raises:
        ValueError: Names the argument.
    """
    arguments = settings.get("init_args") or {}
    nulls = {name: None for name, value in vars(arguments).items() if value is None}
    if not nulls:
        return
    module, _, name = settings.class_path.rpartition(".")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(importlib.import_module(module), name), fail_untyped=False)
    for argument in nulls:
        try:
            null = Namespace(**{argument: None})  # type: ignore[no-untyped-call]
            parser.validate(null, skip_unset=False, skip_required=True)
        except TypeError as ex:
            reason = " ".join(str(ex).split()).partition(": ")[2]
            raise ValueError(f"`{group}.{argument}` is null. {reason}") from ex


def root_cause(ex: BaseException) -> BaseException:
    """What went wrong below jsonargparse's report of every type that it tried."""
    while ex.__cause__ is not None and (
        "Does not validate against any" in str(ex) or isinstance(ex, argparse.ArgumentError)
    ):
        ex = ex.__cause__
    return ex
