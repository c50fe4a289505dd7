"""Settings given as Python's objects, as the text of a config file and as options."""

import dataclasses
import enum
import os
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_trainer.session.settings import dump_settings


def config_text(settings: Mapping[str, Any]) -> str:
    """The YAML of settings; a class in them stands for its path.

    Raises:
        TypeError: Names the setting that a config file can't hold.
    """
    return dump_settings({name: _plain(value, name) for name, value in settings.items()})


def option_words(options: Mapping[str, Any]) -> Iterator[str]:
    """Settings as the options of a command line: a group's as one for each of its keys.

    Raises:
        TypeError: Names the setting that an option can't hold.
    """
    for name, value in options.items():
        value = _plain(value, name)
        if isinstance(value, dict) and "class_path" in value:
            yield f"--{name}={value['class_path']}"
            value = value.get("init_args") or {}
        if isinstance(value, dict) and "." not in name:
            yield from option_words({f"{name}.{key}": inner for key, inner in value.items()})
        else:
            yield f"--{name}={value if isinstance(value, str) else _text(value)}"


def _text(value: Any) -> str:
    """YAML in one line."""
    text = dump_settings({"value": value}).removeprefix("value:").strip()
    return text if "\n" not in text else f"\n{dump_settings(value)}"


def _plain(value: Any, name: str) -> Any:
    """The value in YAML's types."""
    if isinstance(value, type):
        return {"class_path": _path_of(value, name)}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)  # type: ignore[arg-type]
    if isinstance(value, Mapping):
        plain = {str(key): _plain(inner, f"{name}.{key}") for key, inner in value.items()}
        if isinstance(path := plain.get("class_path"), dict):
            plain["class_path"] = path["class_path"]
        return plain
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{name}[{n}]") for n, inner in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # a number of numpy or torch
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"`{name}` is a {type(value).__name__}, which config.yaml can't hold: give its class, or "
        f'{{"class_path": {type(value).__name__}, "init_args": {{...}}}}, of which it is made'
    )


def _path_of(cls: type, name: str) -> str:
    if "<locals>" in cls.__qualname__:
        raise TypeError(
            f"`{name}` is the class `{cls.__name__}`, which is defined in a function and can't be "
            "found by its name: define it at the top of a module or a cell"
        )
    return f"{cls.__module__}.{cls.__qualname__}"
