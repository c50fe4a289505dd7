"""What Lightning does in each step for nothing, left out."""

import argparse
import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import PassThroughProfiler

_NOTHING: Any = contextlib.nullcontext()
_EACH_BATCH = [
    name
    for name in dir(Callback)
    if name.startswith(("on_before_", "on_after_")) or "_batch_" in name
]


class NoProfiler(PassThroughProfiler):
    """Measures nothing, as Lightning's default does, without a generator for each hook."""

    def profile(self, action_name: str) -> Any:
        """A context that does nothing."""
        return _NOTHING


def skip_empty_hooks(callbacks: Iterable[Callback]) -> None:
    """Keeps Lightning from calling the hooks of each batch that a callback does not have.

    A call costs 2 to 3 us: some 20 callbacks times 6 hooks are more than the step of a small
    model. Private to Lightning: it passes over a hook that can't be called.
    """
    for callback in callbacks:
        for name in _EACH_BATCH:
            # Lightning's LambdaCallback has its hooks in the instance.
            inherited = getattr(type(callback), name) is getattr(Callback, name)
            if inherited and name not in vars(callback):
                setattr(callback, name, None)


@contextlib.contextmanager
def without_asking_for_gpus() -> Iterator[None]:
    """Says that there is no GPU where there is none.

    Else a torch that is built for CUDA tries to load NVIDIA's library in each step of an optimiser,
    at 0.1 ms.
    """
    name = "CUDA_VISIBLE_DEVICES"
    hide = name not in os.environ and not torch.cuda.device_count()
    if hide:
        os.environ[name] = ""
    try:
        yield
    finally:
        if hide:
            del os.environ[name]


# The command line: argparse and jsonargparse ----------------------------------------------------


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


@dataclass(frozen=True)
class Refusal:
    """What jsonargparse 4.51 says of a command line, read from the wording of its message.

    Its exceptions carry nothing but the message.

    Attributes:
        message: In one line, without Python's notation.
        unknown: The option, key or command that there is not.
        is_option: Whether `unknown` was typed as `--unknown`.
        class_path: The class that has no such argument.
        lacks: A module, and the name that it has not.
        is_incomplete: Whether a required setting is missing.
    """

    message: str
    unknown: str
    is_option: bool
    class_path: str
    lacks: tuple[str, str] | None
    is_incomplete: bool

    @classmethod
    def read(cls, message: str, ex: BaseException | None = None) -> "Refusal":
        """Takes apart what a parser's `error` is called with."""
        key = re.match(r'Parser key "([^"]+)"', message)
        if ex is not None and (cause := root_cause(ex)) is not ex:
            message = f"`{key[1]}`: {cause}" if key else str(cause)
        unknown = re.search(
            r"unrecognized arguments: --([^\s=]+)|does not accept option '([^']+)'"
            r"|Option '([^']+)' is not accepted|invalid choice: '([^']+)'",
            message,
        )
        class_path = re.search(r"class_path '([^']+)'", message)
        lacks = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message)
        plain = re.sub(r"\s*\n\s*", " ", message.strip())
        plain = re.sub(r"<class '([\w.]+)'>", r"\1", plain)
        no_group = "`init_args` must be a group of settings, or be left out"
        plain = re.sub(r"'\w+' object has no attribute 'keys'", no_group, plain)
        return cls(
            message=re.sub(r'Parser key "([^"]+)"', r"`\1`", plain),
            unknown=next(filter(None, unknown.groups())) if unknown else "",
            is_option=unknown is not None and unknown[1] is not None,
            class_path=class_path[1] if class_path else "",
            lacks=(lacks[1], lacks[2]) if lacks else None,
            is_incomplete="arguments are required" in message,
        )


def root_cause(ex: BaseException) -> BaseException:
    """The error below jsonargparse's report of every type that it tried.

    jsonargparse 4.51: the report is an exception of a general kind, known by its words.
    """
    while ex.__cause__ is not None and (
        "Does not validate against any" in str(ex) or isinstance(ex, argparse.ArgumentError)
    ):
        ex = ex.__cause__
    return ex
