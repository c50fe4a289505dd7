"""Keeps passwords, keys and tokens out of the session folder."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

NOT_STORED = "<secret: not stored>"  # replaces a whole setting
_HIDDEN = "***"  # replaces a part of a text
_SHORTEST = 8  # characters; shorter secrets would match everywhere

# The last words of the name of a setting, or of its group.
_NAME = re.compile(
    r"(?:^|[._-])(?:password|passwd|secret|credentials|api[_-]?key|"
    r"(?:access|secret|private)[_-]key|(?:api|auth|access|hf)[_-]token)(?:\.|\+?$)",
    re.IGNORECASE,
)
_VARIABLE_WORDS = {
    *("TOKEN", "KEY", "APIKEY", "SECRET"),
    *("PASSWORD", "PASSWD", "CREDENTIAL", "CREDENTIALS"),
}


def scrub(settings: Any) -> Any:
    """A copy of the settings with NOT_STORED in place of each secret.

    A text is a secret by its name (`password`, `api_key`, `hf_token`, ..., but not `key` or
    `pad_token`), or if it has the value of an environment variable with such a name in it.
    """
    return _scrub(settings, "", _environment_secrets())


def _scrub(value: Any, name: str, secrets: Iterable[str]) -> Any:
    if isinstance(value, str):
        named = value and _NAME.search(name)
        return NOT_STORED if named or any(secret in value for secret in secrets) else value
    if isinstance(value, dict):
        return {key: _scrub(item, f"{name}.{key}", secrets) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_scrub(item, name, secrets) for item in value)
    return value


def check_complete(settings: Any) -> None:
    """Raises ValueError if a secret of the settings was not stored."""
    names = [name for name, text in _texts(settings) if text == NOT_STORED]
    # On the command line a class's arguments are named without it.
    options = [re.sub(r"\.init_args\b", "", name).lstrip(".") for name in names]
    if options:
        raise ValueError(
            "; ".join(f"`{o}` is {NOT_STORED!r}: give it again by `--{o} VALUE`" for o in options)
        )


def secret_texts(settings: Any) -> list[str]:
    """The secrets of the settings and of the environment, for `hide`."""
    named = {text for name, text in _texts(settings) if _NAME.search(name)}
    texts = {text for text in named if len(text) >= _SHORTEST} | _environment_secrets()
    return sorted(texts, key=len, reverse=True)  # a secret may be a part of a longer one


def hide(text: str, secrets: Iterable[str]) -> str:
    """The text with *** in place of each secret."""
    for secret in secrets:
        text = text.replace(secret, _HIDDEN)
    return text


def hide_in_command(arguments: Sequence[str], secrets: Iterable[str]) -> list[str]:
    """The arguments with *** in place of secrets and of all values of options like `--api_key`."""
    hidden: list[str] = []
    follows = False  # whether the previous argument takes a secret
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        is_option = argument.startswith("--")
        asks = is_option and _NAME.search(name) is not None
        if asks and equals:
            argument = f"{name}={_HIDDEN}"
        elif follows and not is_option:
            argument = _HIDDEN
        follows = asks and not equals
        hidden.append(hide(argument, secrets))
    return hidden


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, name)


def _environment_secrets() -> set[str]:
    values = (
        value
        for name, value in os.environ.items()
        if _VARIABLE_WORDS & {*name.upper().split("_")}
        # The path of a key file is not a secret.
        and not (os.path.isabs(value) and os.path.exists(value))
    )
    # Each line of a private key counts: a patch shows them with a sign before each.
    lines = (line.strip() for value in values for line in value.splitlines())
    return {line for line in lines if len(line) >= _SHORTEST}
