"""Reads, writes, compares and flattens settings, and replaces text files safely."""

import errno
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lightning_trainer.session.door import is_endless, read_bounded, write_anew

# The C loader is ten times as fast; not every PyYAML has it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What a file of settings has at most: 700 restarts in environment.yaml have 30,000 parts. To read
# so many takes 0.3 s.
_MOST_BYTES, _MOST_PARTS, _DEEPEST = 2**22, 40_000, 100
_SMALL, _DOUBTFUL = 2**14, re.compile(r"[&*]|[\w.:]{400}|([-?]\s+){5}")
_OPENING = re.compile(r"[\[{]")  # of text without many, and none of the above, nothing is counted
_LONG_NUMBER = re.compile(r"[-+.]?\d[\d_:.a-fA-FxX]{400,}")


def read_settings(text: str) -> dict[str, Any]:
    """What `dump_settings` has written."""
    try:
        settings: dict[str, Any] = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:  # libyaml does not read such a name
        settings = yaml.load(text, Loader=yaml.SafeLoader)
    return settings


def read_yaml(path: Path) -> dict[str, Any] | None:
    """The mapping in a YAML file; None if the file is missing, damaged or holds something else."""
    try:
        return load_yaml(path)
    except (OSError, ValueError):
        return None


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        OSError: If the file is missing, or can't be read.
        ValueError: If it holds something else, or is too large, too deep or too much entangled.
    """
    text = read_bounded(path, _MOST_BYTES).decode()
    try:
        if len(text) > _SMALL or _DOUBTFUL.search(text) or len(_OPENING.findall(text)) > _DEEPEST:
            _check_parts(text)
        content = yaml.load(text, Loader=_Loader)
    except (RecursionError, yaml.YAMLError) as ex:
        raise ValueError(f"is not YAML: {' '.join(str(ex).split())}") from None
    if not isinstance(content, dict):
        raise ValueError("holds no settings")
    return content


def _check_parts(text: str) -> None:
    """Counts the parts of a YAML, each alias with all that it stands for; makes none of them."""
    sizes: dict[str | None, int] = {}
    open_: list[tuple[str | None, int]] = []  # the anchor, and the count before it
    n = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            n += sizes.get(event.anchor, _MOST_PARTS)  # a part in itself has no end
        elif isinstance(event, yaml.ScalarEvent):
            n += 1
            if event.implicit[0] and _LONG_NUMBER.fullmatch(event.value):
                raise ValueError("has a number of more than 400 digits")
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, n))
            n += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor is not None:
                sizes[anchor] = n - before
        if isinstance(event, yaml.ScalarEvent) and event.anchor is not None:
            sizes[event.anchor] = 1
        if n > _MOST_PARTS or len(open_) > _DEEPEST:
            raise ValueError(f"has more than {_MOST_PARTS:,} parts, or is too deep")


def check_stored(value: Any) -> None:
    """Refuses settings that no run has stored.

    Raises:
        ValueError: If they have more parts than a file of settings, or name a pipe or a device,
            which jsonargparse would read to its end.
    """
    parts, n = [value], 0
    while parts:
        n += 1
        if n > _MOST_PARTS:
            raise ValueError(f"has more than {_MOST_PARTS:,} settings")
        last = parts.pop()
        if isinstance(last, str) and is_endless(last):
            raise ValueError(f"has the setting {last!r}, which is a pipe or a device")
        parts += last.values() if isinstance(last, Mapping) else ()
        parts += last if isinstance(last, list | tuple | set) else ()


def dump_settings(settings: dict[str, Any]) -> str:
    """Settings as YAML that jsonargparse reads back unchanged."""
    try:
        text: str = yaml.dump(settings, Dumper=_FastDumper, sort_keys=False)
    except UnicodeEncodeError:  # a name of a file that is not UTF-8
        text = yaml.dump(settings, Dumper=_Dumper, sort_keys=False)
    return text


class _Dumper(yaml.SafeDumper):
    """Quotes text such as 3e-3, which is a float to jsonargparse but not to PyYAML."""


class _FastDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """The same in C, five times as fast."""


for _dumper in (_Dumper, _FastDumper):
    _dumper.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def replace_text(path: Path, text: str) -> None:
    """Writes a file; other processes see the old text or the new one, never a part."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        write_anew(temporary, text.encode())
        temporary.replace(path)
    except OSError as ex:
        temporary.unlink(missing_ok=True)
        if isinstance(ex, IsADirectoryError):
            reason = "is a folder where a file should be: move it away"
            raise OSError(errno.EISDIR, reason, str(path)) from None
        raise


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
