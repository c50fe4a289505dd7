"""How many secrets stay hidden, how many harmless settings stay readable, and what that costs.

python benchmarks/hidden.py

Where detect-secrets is installed (`pip install detect-secrets`), its own verdicts stand below. The
settings and the places are those of tests/secret_cases.py. (A file `secrets.py` here would hide the
standard library's.)
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import report, table
from secret_cases import HARMLESS, PLACES, SECRETS, hides, leaks, made

from lightning_trainer.session.hiding import Hider
from lightning_trainer.session.secret_forms import forms

MEGABYTES = 8


def counted() -> str:
    rows = []
    for place in PLACES:
        leaked = [name for name in SECRETS if leaks(place, name)]
        false = [name for name in HARMLESS if hides(place, name)]
        rows.append(
            [
                place,
                f"{len(SECRETS) - len(leaked)} of {len(SECRETS)}",
                ", ".join(leaked) or "-",
                f"{len(HARMLESS) - len(false)} of {len(HARMLESS)}",
                ", ".join(false) or "-",
            ]
        )
    return table(["place", "secrets hidden", "seen", "harmless readable", "hidden"], rows)


def of_detect_secrets() -> str:
    """The same settings in a YAML file, as detect-secrets judges it; empty without the package."""
    try:
        from detect_secrets import SecretsCollection
        from detect_secrets.core.scan import scan_line
        from detect_secrets.settings import default_settings
    except ImportError:
        return ""
    settings = [*SECRETS.items(), *HARMLESS.items()]
    with default_settings(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "settings.yaml")
        path.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in settings))
        collection = SecretsCollection()
        collection.scan_file(str(path))
        found = {secret.line_number - 1 for _, secret in collection}
        started_s = time.process_time()
        for n in range(500):
            list(scan_line(plain(n).decode()))
        us = (time.process_time() - started_s) / 500 * 1e6
    hidden = sum(n < len(SECRETS) for n in found)
    readable = len(HARMLESS) - (len(found) - hidden)
    return (
        f"detect-secrets finds {hidden} of {len(SECRETS)} secrets in a YAML file of the settings, "
        f"and leaves {readable} of {len(HARMLESS)} harmless ones alone; a line takes {us:.0f} us."
    )


def plain(n: int) -> bytes:
    loss, accuracy = random.random(), random.random()
    return f"{n:7d}/10000 | loss: {loss:.4f} | accuracy: {accuracy:.4f} | 52.1 it/s\n".encode()


LINES: dict[str, Callable[[int], bytes]] = {
    "lines of a training": plain,
    "the same with `tokens: 123`": lambda n: plain(n)[:-1] + b" | tokens: 12345\n",
    "paths": lambda n: f"saved: /data/me/session_node1_2026_11_26_20_01_02/last{n}.ckpt\n".encode(),
    "base64": lambda n: made(76, seed=str(n % 100)).encode() + b"\n",
    "a secret in each": lambda n: f"login with password=hunter{n}\n".encode(),
}


def costs() -> str:
    """Seconds of a processor for 1 GB of output, of the helper without and with hiding."""
    from lightning_trainer.session import terminal

    rows = []
    hider = Hider(forms(made(20, seed=str(n)) for n in range(5)))
    for name, line in LINES.items():
        content = b"".join(map(line, range(MEGABYTES * 10**6 // len(line(0)))))
        blocks = [content[i : i + 2**16] for i in range(0, len(content), 2**16)]
        seconds = []
        for copy in (
            terminal._readable,
            lambda block: hider.hide_next(terminal._readable(block)[0]),
        ):
            started_s = time.process_time()
            for block in blocks:
                copy(block)
            seconds.append((time.process_time() - started_s) / len(content) * 1e9)
        rows.append([name, *(f"{s:.0f}" for s in seconds)])
    return table(["1 GB of", "s of a processor, without", "with 5 known secrets"], rows)


def import_ms(module: str) -> float:
    code = f"import time; s = time.perf_counter(); import {module}; print(time.perf_counter() - s)"
    times = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(7)]
    return sorted(times)[3] * 1e3


def main() -> None:
    ms = import_ms("lightning_trainer.session.secrets")
    text = f"{len(SECRETS)} secrets, {len(HARMLESS)} harmless settings.\n\n{counted()}\n\n"
    text += f"{of_detect_secrets()}\n\n{costs()}\n\nImport of session/secrets.py: {ms:.0f} ms."
    report("What is hidden", text)


if __name__ == "__main__":
    main()
