"""Reads, writes, compares and flattens settings, and replaces text files safely."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

# The C loader is ten times as fast; not every PyYAML has it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> dict[str, Any] | None:
    """The mapping in a YAML file; None if the file is missing, damaged or holds something else."""
    try:
        content = yaml.load(path.read_text(), Loader=_Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None


def dump_settings(settings: dict[str, Any]) -> str:
    """Settings as YAML that jsonargparse reads back unchanged."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Quotes text such as 3e-3, which is a float to jsonargparse but not to PyYAML."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def replace_text(path: Path, text: str) -> None:
    """Writes a file; other processes see the old text or the new one, never a part."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line `a.b: old -> new` for each differing value, at any depth."""
    lines: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by the names of their options, e.g. `model.class_path`; does not flatten lists."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}".lstrip(".")
        flat |= flatten(value, name) if isinstance(value, Mapping) else {name: value}
    return flat
