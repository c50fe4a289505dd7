"""Writes what editors check and complete a config with: python cli.py schema --config FILE."""

import json
import os
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ArgumentParser

import lightning_trainer
from lightning_trainer.commands.options import CommandParser
from lightning_trainer.session.settings import load_yaml, replace_text
from lightning_trainer.start.parser import session_options

_DESCRIPTION = """Writes a JSON schema of a config: its keys, their types and defaults, and the
arguments of the project's classes. VS Code (with its YAML extension), PyCharm and others check and
complete the file by it. Write it again when a class has another argument."""
_LINE = "# yaml-language-server: $schema="
_OF_THE_RUN: tuple[tuple[str, Any, str], ...] = (
    ("seed_everything", bool | int, "Seed of all random numbers; true: another one at each start."),
    ("ckpt_path", str | None, "A session or checkpoint to begin with."),
    ("weights_only", bool | None, "Lightning's; nothing in a checkpoint is executed either way."),
)


def schema(argv: list[str]) -> int:
    """Runs the command with the words after `schema`; returns its exit code."""
    parser = CommandParser("schema", description=_DESCRIPTION)
    parser.add_argument("--config", "-c", required=True, metavar="FILE")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="default: NAME.schema.json beside it; -: prints",
    )
    options = parser.parse_args(argv)
    config = Path(options.config)
    target = Path(options.output or config.with_suffix(".schema.json"))
    try:
        text = json.dumps(config_schema(load_yaml(config))) + "\n"
        if options.output == "-":
            print(text, end="")
            return 0
        replace_text(target, text)
        lines = config.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, ImportError, AttributeError) as ex:
        parser.error(f"`--config` is {options.config!r}: {ex}")
    print(f"Schema: {target}")
    line = _LINE + os.path.relpath(target, config.parent)
    if line not in lines:
        print(f"For editors, add this line at the top of {config}:\n{line}")
    return 0


def config_schema(settings: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of configs with the classes of this one.

    No key is required: another file of the same command, or an option, may give it.

    Raises:
        ImportError, AttributeError, ValueError: If a class of the settings can't be imported.
    """
    trainer = settings.get("trainer") or {}
    named = trainer.get("callbacks") or []
    callbacks = {_path_of(one) for one in (named if isinstance(named, list) else [named])}
    callbacks |= {f"lightning.pytorch.callbacks.{name}" for name in pl.callbacks.__all__}
    callbacks |= {f"lightning_trainer.{name}" for name in lightning_trainer.__all__}
    paths = [path for path in sorted(callbacks - {""}) if _is_callback(resolve_name(path))]
    groups = {"model": _path_of(settings.get("model")), "data": _path_of(settings.get("data"))}
    parser = _parser()
    names = groups | {f"callback_{n}": path for n, path in enumerate(paths)}
    for name, path in names.items():
        if path and _can_describe(path):
            parser.add_class_arguments(resolve_name(path), name, fail_untyped=False)
    made: dict[str, Any] = json.loads(parser.get_completion_script("jsonschema"))
    keys = made["properties"]
    known = [_specification(path, keys.pop(f"callback_{n}", {})) for n, path in enumerate(paths)]
    for group, path in groups.items():
        keys[group] = {"anyOf": [{"type": "string"}, _specification(path, keys.get(group, {}))]}
    other = _specification("", {})
    other["properties"]["class_path"]["not"] = {"enum": paths}
    callback = {"anyOf": [{"type": "string"}, *known, other]}
    of_trainer = keys["trainer"]["properties"]
    of_trainer["callbacks"] = {
        "anyOf": [{"type": "null"}, {"type": "array", "items": callback}, callback]
    }
    of_trainer["callbacks+"] = of_trainer["callbacks"]
    whole: dict[str, Any] = _without_required(made)
    return whole


def _parser() -> ArgumentParser:
    parser = ArgumentParser()
    for name, kind, default, text in session_options("fit"):
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    for name, kind, text in _OF_THE_RUN:
        parser.add_argument(f"--{name}", type=kind, help=text)
    parser.add_class_arguments(pl.Trainer, "trainer", fail_untyped=False, skip={"callbacks"})
    return parser


def _can_describe(path: str) -> bool:
    """Whether jsonargparse can describe the arguments of a class, with all classes they may be."""
    parser = ArgumentParser()
    try:
        parser.add_class_arguments(resolve_name(path), "alone", fail_untyped=False)
        parser.get_completion_script("jsonschema")
    except (TypeError, ValueError):
        return False
    return True


def _specification(path: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The schema of `class_path` and `init_args`; of any class where there is no path."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "class_path": {"const": path} if path else {"type": "string"},
            "init_args": arguments if "properties" in arguments else {"type": "object"},
            "dict_kwargs": {"type": "object"},
        },
    }


def _path_of(setting: Any) -> str:
    path = setting.get("class_path") if isinstance(setting, dict) else setting
    return path if isinstance(path, str) else ""


def _is_callback(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, pl.Callback) and found is not pl.Callback


def _without_required(part: Any) -> Any:
    """A schema in which no key must be given."""
    if isinstance(part, dict):
        return {
            key: _without_required(value)
            for key, value in part.items()
            if not (key == "required" and isinstance(value, list))
        }
    return [*map(_without_required, part)] if isinstance(part, list) else part
