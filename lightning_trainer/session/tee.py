"""Tee: copies what Python prints past the file descriptors 1 and 2, as in a notebook, to a pipe."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any


class Tee:
    """A stream in place of another one, to which it passes all on.

    Whoever has kept it after `stop` has the other one.
    """

    def __init__(self, stream: Any, pipe: int) -> None:
        self.stream, self._pipe = stream, pipe

    def write(self, text: str) -> Any:
        result = self.stream.write(text)
        if self._pipe >= 0:
            with contextlib.suppress(OSError):  # a copy of the log must end no run
                _write_all(self._pipe, text.encode("utf-8", "backslashreplace"))
        return result

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def stop(self) -> None:
        self._pipe = -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __iter__(self) -> Any:
        return iter(self.stream)


def is_past_descriptors(stream: Any) -> bool:
    """Whether what is written to a stream of `sys` goes elsewhere than to descriptor 1 or 2."""
    if stream is None or getattr(stream, "closed", False):
        return False
    try:
        return stream.fileno() not in (1, 2)
    except (AttributeError, OSError, ValueError, io.UnsupportedOperation):
        return True


def tee_streams(names: list[str], pipe: int) -> Callable[[], None]:
    """Puts a `Tee` in place of each stream of `sys`; returns what puts the streams back."""
    tees = {name: Tee(getattr(sys, name), pipe) for name in names}
    for name, tee in tees.items():
        setattr(sys, name, tee)

    def put_back() -> None:
        for name, tee in tees.items():
            tee.stop()
            if getattr(sys, name) is tee:  # else another one has come on top of it
                setattr(sys, name, tee.stream)

    return put_back


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
