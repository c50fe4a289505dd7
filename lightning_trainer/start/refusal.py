"""Refusal: what an error of jsonargparse says, for a message with near names."""

import re
from dataclasses import dataclass

from lightning_trainer.internals import root_cause


@dataclass(frozen=True)
class Refusal:
    """jsonargparse's error, read from the wording of its message.

    jsonargparse 4.51: its exceptions carry nothing but the message.
    """

    message: str  # in one line, without Python's notation
    unknown: str  # the option, key or command that does not exist
    is_option: bool  # whether `unknown` was typed as `--unknown`
    class_path: str  # the class that has no such argument
    lacks: tuple[str, str] | None  # a module, and the name that it does not have
    is_incomplete: bool  # whether a required setting is missing

    @classmethod
    def read(cls, message: str, ex: BaseException | None = None) -> "Refusal":
        """Reads the message that a parser's `error` gets, and the exception behind it."""
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
