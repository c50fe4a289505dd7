"""Runs whose file operations fail, one after the other, and what has become of them."""

import errno
import fnmatch
import functools
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from conftest import CONFIG, start_process
from forks import start_server
from restarts import result, same

from lightning_trainer.session.folder import Session

# By name, the paths of each kind of file that a run writes.
KINDS = {
    "session folder": "*/session_*_tiny",
    ".lock": "*/.lock",
    "log.txt": "*/log.txt",
    "config.yaml": "*/config*.yaml*",
    "environment.yaml": "*/environment.yaml*",
    "run.json": "*/run.json*",
    "metrics.csv": "*/metrics.*",
    "TensorBoard": "*/events.out.*",
    "checkpoints folder": "*/checkpoints",
    "last.ckpt": "*/last.ckpt*",
    "best.ckpt": "*/best.ckpt*",
    "failure.txt": "*/failure.txt",
    "predictions.pt": "*/predictions.pt*",
}
# What a file system may answer to each operation.
_WRITING = ("ENOSPC", "EIO", "EDQUOT", "EROFS")
ERRORS = {
    "create": (*_WRITING, "EACCES", "EINVAL"),
    "open": ("EIO", "EACCES"),
    "read": ("EIO",),
    "write": ("ENOSPC", "EIO", "EDQUOT"),
    "fsync": ("EIO", "EINVAL", "ENOSYS", "ENOTSUP", "ENOSPC"),
    "rename": (*_WRITING, "EACCES"),
    "link": ("EPERM", "ENOTSUP", "ENOSYS", "EMLINK"),
    "symlink": ("EPERM", "ENOSYS"),
    "mkdir": (*_WRITING, "EACCES"),
    "unlink": ("EIO", "EROFS", "EACCES"),
    "truncate": ("ENOSPC", "EIO", "EINVAL"),
    "close": ("EIO", "ENOSPC", "EDQUOT"),
    "stat": ("EIO", "EACCES"),
    "mmap": ("ENODEV", "EINVAL", "ENOMEM"),
    "lock": ("ENOLCK", "ENOSYS", "EINVAL", "EIO"),
    "statvfs": ("EIO", "ENOSYS"),
}
_OPTIONS = (
    "--trainer.max_steps=11",
    "--save_minutes=0",
    "--seed_everything=1",
    "--model.score_name=loss",
    "--model.score_mode=min",
)


@dataclass(frozen=True)
class Fault:
    """A file operation of a run that fails."""

    operation: str
    kind: str  # of `KINDS`
    number: int  # among the operations of this name on this kind of file
    error: str  # a name of `errno`
    lasts: bool  # whether all later ones fail as well

    def __str__(self) -> str:
        lasts = "on" if self.lasts else "once"
        code = getattr(errno, self.error)
        return f"{self.operation} {self.number} {code} {lasts} {KINDS[self.kind]}"


@dataclass(frozen=True)
class Ended:
    """A run that has ended, and its output."""

    code: int
    out: str
    err: str
    session: Path | None


@functools.cache
def library() -> str:
    """The path of the library that lets operations fail; compiles it."""
    path = tempfile.mkdtemp(prefix="failing_disk_") + "/failing_disk.so"
    source = Path(__file__).with_name("failing_disk.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", path, source, "-ldl"], check=True)
    return path


def run_on(
    folder: Path, *arguments: object, fault: Fault | str = "", log: Path | None = None
) -> Ended:
    """Runs a command line whose operations below `folder` fail as told, or are logged."""
    variables = {"LD_PRELOAD": library(), "FAULT_FOLDER": str(folder), "FAULT": str(fault)}
    variables["GIT_DIR"] = os.devnull  # spares the processes that ask for the code's version
    if log:
        variables["FAULT_LOG"] = str(log)
    process = start_process(
        *arguments,
        address=start_server(library()),
        env={**os.environ, **variables},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        err += "\nTIMEOUT"
    sessions = [*folder.glob("experiments/session_*")] if folder.exists() else []
    assert len(sessions) < 2, sessions
    return Ended(process.returncode, out, err, sessions[0] if sessions else None)


def fit_on(folder: Path, *options: str, fault: Fault | str = "", log: Path | None = None) -> Ended:
    """Trains the tiny project for 11 iterations, each of which is saved."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder.with_name(f"{folder.name}.yaml")  # a disk of its own
    config.write_text(CONFIG.format(output_path=folder / "experiments"))
    return run_on(folder, "fit", "--config", config, *_OPTIONS, *options, fault=fault, log=log)


def operations(log: Path) -> dict[tuple[str, str], int]:
    """How many operations of each name there are on each kind of file."""
    counts: dict[tuple[str, str], int] = {}
    for line in log.read_text().splitlines():
        operation, _, path = line.partition(" ")
        for kind, pattern in KINDS.items():
            if operation in ERRORS and fnmatch.fnmatch(path, pattern):
                counts[operation, kind] = counts.get((operation, kind), 0) + 1
    return counts


def all_faults(counts: dict[tuple[str, str], int], each: int = 3) -> list[Fault]:
    """Faults of each operation on each kind of file: of the first, the last, and some between."""
    faults = []
    for (operation, kind), n in sorted(counts.items()):
        numbers = sorted({1 + round(i * (n - 1) / max(each - 1, 1)) for i in range(each)})
        for error in ERRORS[operation]:
            for number in numbers:
                faults += [Fault(operation, kind, number, error, lasts) for lasts in (False, True)]
    return faults


def survive(fault: Fault, folder: Path, whole: dict) -> str:
    """What became of a run with the fault, and of going on: "went on", "ended", or what is lost.

    `whole` is the result of the run that never failed.
    """
    run = fit_on(folder, fault=fault)
    told = f"exit code {run.code}\n{run.out}\n{run.err}"
    if "TIMEOUT" in run.err:
        return f"LOST: it hangs\n{told}"
    if "Traceback" in run.out + run.err:
        return f"LOST: a traceback\n{told}"
    if run.code == 0:
        return "went on" if (differs := _differs(run, whole)) == "" else f"LOST: {differs}\n{told}"
    errors = [line for line in run.err.splitlines() if line.startswith("error: ")]
    if not errors:
        return f"LOST: no message\n{told}"
    if not run.session or not (run.session / "config.yaml").exists():
        return "ended" if "Iteration" not in run.out else f"LOST: no session\n{told}"
    if not (run.session / "checkpoints/last.ckpt").exists():
        return "ended" if "Iteration" not in run.out else f"LOST: no checkpoint\n{told}"
    more = run_on(folder, "fit", "--ckpt_path", run.session)
    spare = run.session / "checkpoints/newest_best.ckpt"
    if spare.exists():  # as the message says
        spare.replace(spare.with_name("best.ckpt"))
    if more.code and "nothing left to do" not in more.err:
        return f"LOST: it does not go on\n{told}\n{more.out}\n{more.err}"
    furthest = Session(run.session).find_checkpoint(best=False)[0]
    if furthest.name == "best.ckpt":  # of the same iteration, but with its validation
        shutil.copyfile(furthest, furthest.with_name("last.ckpt"))
    if differs := _differs(more, whole):
        return f"LOST: {differs} after going on\n{told}\n{more.out}\n{more.err}"
    return "ended"


def _differs(run: Ended, whole: dict) -> str:
    try:
        got = result(run.session)
    except Exception as ex:
        return f"{type(ex).__name__}: {ex}"
    return ", ".join(name for name in whole if not same(got[name], whole[name]))
