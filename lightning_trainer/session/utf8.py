"""Makes text UTF-8, whatever the locale of the process."""

import codecs
import contextlib
import io
import locale
import sys
from collections.abc import Iterator

_LOCALES = ("C.UTF-8", "UTF-8", "en_US.UTF-8")  # the second on macOS


@contextlib.contextmanager
def as_utf8() -> Iterator[None]:
    r"""Lets files be read and written as UTF-8, and prints of any text end no run.

    Python opens a file in the encoding of the locale, which is ASCII in many containers and batch
    jobs. A stream that is not UTF-8 gets ASCII, with escapes as in "caf\xe9", because log.txt
    has its bytes.
    """
    with contextlib.ExitStack() as stack:
        if not _is_utf8(locale.getpreferredencoding(False)):
            stack.callback(locale.setlocale, locale.LC_CTYPE, locale.setlocale(locale.LC_CTYPE))
            for name in _LOCALES:
                with contextlib.suppress(locale.Error):
                    locale.setlocale(locale.LC_CTYPE, name)
                    break
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper) and not stream.closed:
                stack.callback(_reconfigure, stream, stream.encoding, stream.errors)
                encoding = stream.encoding if _is_utf8(stream.encoding) else "ascii"
                _reconfigure(stream, encoding, "backslashreplace")
        yield


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


def _reconfigure(stream: io.TextIOWrapper, encoding: str, errors: str | None) -> None:
    with contextlib.suppress(ValueError, OSError):  # closed meanwhile, or what is left can't go out
        stream.reconfigure(encoding=encoding, errors=errors)
