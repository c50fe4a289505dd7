"""One of several processes that train together, are killed together and go on, again and again.

Starting Python for each kill would take most of the time. Prints a line for each kill.
"""

import os
import sys
from pathlib import Path

import pytest
from restarts import copy_at, result, same

from lightning_trainer.report.curves import DrawCurves
from lightning_trainer.start.cli import run_trainer


def run(*args: object) -> int:
    os.environ.pop("LIGHTNING_TRAINER_SESSION", None)
    try:
        run_trainer([str(arg) for arg in args])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def newest(folder: Path) -> Path:
    return max(folder.glob("session_*"), key=os.path.getmtime)


def check(config: str, folder: Path, hook: str, kills: range, flags: list[str]) -> None:
    copies = folder / "killed"
    with pytest.MonkeyPatch.context() as patch:
        copy_at(patch, hook, kills, copies)
        assert run("fit", "--config", config, *flags) == 0
    expected = result(newest(folder))
    for k in kills:
        session = copies / str(k)
        assert run("fit", "--ckpt_path", session, "--save_minutes=10") == 0
        equal = same(result(session), expected)
        print(f"killed at {k}: {'equal' if equal else 'different'}", flush=True)


if __name__ == "__main__":
    DrawCurves._draw = lambda self: None
    config, folder, hook, start, stop, step, *flags = sys.argv[1:]
    check(config, Path(folder), hook, range(int(start), int(stop), int(step)), flags)
