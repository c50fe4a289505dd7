"""The private parts of Python that end a process, under the rules of internals.py."""

import atexit
import gc
import io
import os
import threading
from contextlib import suppress
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """Ends the process as Python does, but frees nothing.

    Python 3.10: `threading._shutdown` waits for threads and pools, `atexit._run_exitfuncs` calls
    what is registered; Python's own end calls both, in this order.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    files = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
    for each in gc.get_objects():
        if issubclass(type(each), files) and not each.closed:
            with suppress(OSError, ValueError):
                each.flush()
    os._exit(code)
