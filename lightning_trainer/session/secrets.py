"""Keeps passwords, keys and tokens out of the session folder."""

import copy
import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lightning_trainer.session.secret_names import NOTHING, PASSWORD, TOKEN, is_secret, level_of

if TYPE_CHECKING:
    from lightning_trainer.session.hiding import Hider, Kind

NOT_STORED = "<secret: not stored>"  # replaces a whole setting
_HIDDEN = "***"  # replaces a part of a text
_SHORTEST = 8  # characters; a shorter one is only known if it is no plain word or number
_NAMES_IN_GROUPS = {
    *("user", "username", "login", "name", "type", "method", "scheme", "host", "url")
}


def scrub(settings: Any, secrets: Sequence[str] = ()) -> Any:
    """A copy of the settings with NOT_STORED in place of each secret.

    A text, path or number is a secret by the name of its option or group (`password`,
    `hf_token`, ..., but not `pad_token`), by its shape (a URL with a password, a token of a known
    service), or if it has one of `secrets` in it, or the value of such a variable of the
    environment.
    """
    return _scrub(settings, NOTHING, hider_of((*secrets, *_environment_secrets())))


def _scrub(value: Any, level: int, hider: "Hider") -> Any:
    if _is_leaf(value):
        return NOT_STORED if _is_secret(value, level, hider) else value
    if isinstance(value, Mapping):
        shown = {key: _hide(key, hider) if isinstance(key, str) else key for key in value}
        return {shown[k]: _scrub(item, _level(k, level), hider) for k, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        names = getattr(value, "_fields", [""] * len(value))  # of a named tuple
        levels = [_level(name, level) for name in names]
        items = [_scrub(item, of, hider) for item, of in zip(value, levels, strict=True)]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    fields = _fields(value)
    hidden = {name: _scrub(item, _level(name, level), hider) for name, item in fields.items()}
    if any(NOT_STORED in _leaves(item) for item in hidden.values()):
        value = copy.copy(value)
        for name, item in hidden.items():
            object.__setattr__(value, name, item)  # also of a frozen one
    return value


def _is_leaf(value: Any) -> bool:
    return isinstance(value, str | bytes | int | float | PurePath)


def _fields(value: Any) -> dict[str, Any]:
    """The settings in a dataclass or a namespace; empty for any other value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    is_group = isinstance(value, SimpleNamespace) or type(value).__name__ == "Namespace"
    return dict(vars(value)) if is_group and not isinstance(value, type) else {}


def _level(key: Any, level: int) -> int:
    """How much a name within a group says; what is in a group of secrets is one."""
    if level == TOKEN and str(key).lower() in _NAMES_IN_GROUPS:
        return NOTHING
    return max(level, *(level_of(part) for part in str(key).split(".")))


def _is_secret(value: Any, level: int, hider: "Hider") -> bool:
    if value is None or isinstance(value, bool) or value in ("", b"", NOT_STORED):
        return False
    if isinstance(value, int | float):
        is_long = sum(map(str.isdigit, str(value))) >= 4
        return (level == PASSWORD and is_long) or _hide(str(value), hider) != str(value)
    text = value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")
    return is_secret(text, level) or any(True for _ in hider.find(text))


def check_complete(settings: Any) -> None:
    """Raises ValueError if a secret of the settings was not stored."""
    if options := hidden_options(settings):
        raise ValueError(
            "; ".join(f"`{o}` is {NOT_STORED!r}: give it again by `--{o} VALUE`" for o in options)
        )


def hidden_options(settings: Any) -> list[str]:
    """The names of the options whose secrets were not stored."""
    names = (_option(name) for name, value in _named_leaves(settings) if value == NOT_STORED)
    return [*dict.fromkeys(names)]


def _option(name: str) -> str:
    """A setting as it is named on the command line: a class's arguments without `init_args`."""
    return re.sub(r"\.init_args\b", "", name).lstrip(".")


def without_given(settings: Mapping[str, Any], words: Iterable[str]) -> dict[str, Any]:
    """Stored settings without the secrets that a command line gives again.

    NOT_STORED in place of a number would be refused before the number is read.
    """
    options = [word.removeprefix("--").partition("=")[0] for word in words if word[:2] == "--"]
    given = tuple(_option(option).removesuffix("+") for option in options)

    def is_given(name: str) -> bool:
        return any(f"{_option(name)}.".startswith(f"{option}.") for option in given)

    def without(group: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        kept = {}
        for key, value in group.items():
            name = f"{prefix}.{key}"
            if isinstance(value, Mapping):
                kept[key] = without(value, name)
            elif not (NOT_STORED in _leaves(value) and is_given(name)):
                kept[key] = value
        return kept

    return without(settings, "")


def secret_texts(settings: Any) -> list[str]:
    """The secrets of the settings and of the environment, for `hide`."""
    found = {*_environment_secrets()}
    hider = hider_of(tuple(found))
    for level, value in _leveled_leaves(settings, NOTHING):
        if not isinstance(value, bool) and value not in (None, NOT_STORED):
            found |= _parts(_text(value), level, hider)
    return sorted(found, key=len, reverse=True)  # a secret may be a part of a longer one


def hide(text: str, secrets: Iterable[str], kind: "Kind" = "text") -> str:
    """The text with *** in place of each secret."""
    return _hide(text, hider_of(tuple(secrets)), kind)


def _hide(text: str, hider: "Hider", kind: "Kind" = "text") -> str:
    hidden = hider.hide(text.encode(errors="surrogatepass"), kind)
    return hidden.decode(errors="surrogatepass")


def hide_in_command(arguments: Sequence[str], secrets: Iterable[str]) -> list[str]:
    """The arguments with *** in place of secrets and of all values of options like `--api_key`."""
    hidden: list[str] = []
    level = NOTHING  # of the option before
    for argument in arguments:
        name, equals, value = argument.partition("=")
        is_option = argument.startswith("--")
        if is_option:
            level = _level(name, NOTHING)
        if is_option and equals and is_secret(value.encode(errors="surrogatepass"), level):
            argument = f"{name}={_HIDDEN}"
        elif not is_option and is_secret(argument.encode(errors="surrogatepass"), level):
            argument = _HIDDEN
        level = NOTHING if equals or not is_option else level
        hidden.append(hide(argument, secrets))
    return hidden


@functools.lru_cache(8)
def hider_of(secrets: tuple[str, ...]) -> "Hider":
    """What finds and hides the secrets, and what looks like one."""
    from lightning_trainer.session.hiding import Hider  # not at the top, for quick commands
    from lightning_trainer.session.secret_forms import forms

    return Hider(forms(secrets) if secrets else ())


def _parts(text: str, level: int, hider: "Hider") -> set[str]:
    """The secrets in a setting, each line of one for itself: a patch has a sign before each."""
    content = text.encode(errors="surrogatepass")
    found = [content[start:stop] for start, stop in hider.find(content)]
    if is_secret(content, level):
        found += [content, *re.findall(rb"(?i)^(?:bearer|basic|token) +(.+)", content)]
    texts = (part.decode(errors="surrogatepass") for part in found)
    lines = (line.strip() for text in texts for line in [text, *text.splitlines()])
    return {line for line in lines if _is_telling(line)}


def _is_telling(text: str) -> bool:
    """Whether a secret is long or rare enough to be looked for in any text."""
    return len(text) >= _SHORTEST or (
        len(text) >= 4
        and not (text.isalpha() or text.isdigit() or text.isspace())
        and not re.fullmatch(r"[-+]?[0-9.]+(?:e[-+]?[0-9]+)?", text)
    )


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _leveled_leaves(value: Any, level: int) -> Iterator[tuple[int, Any]]:
    if _is_leaf(value):
        yield level, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leveled_leaves(item, _level(key, level))
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _leveled_leaves(item, level)
    elif known := _fields(value):
        yield from _leveled_leaves(known, level)


def _named_leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named_leaves(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _named_leaves(item, name)
    else:
        yield name, value


def _leaves(value: Any) -> list[Any]:
    return [leaf for _, leaf in _leveled_leaves(value, NOTHING)]


def _environment_secrets() -> set[str]:
    return _secrets_in(tuple(os.environ.items()))


@functools.lru_cache(1)
def _secrets_in(variables: tuple[tuple[str, str], ...]) -> set[str]:
    found: set[str] = set()
    for name, value in variables:
        # The path of a key file is not a secret.
        if not (os.path.isabs(value) and os.path.exists(value)):
            found |= _parts(value, level_of(name), hider_of(()))
    return found
