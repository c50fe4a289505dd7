"""Where and with what a run is started: code, machine, versions."""

import os
import shlex
import socket
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "numpy")
_JOB_ID_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
# Untracked files up to this size go into the patch; larger ones are data rather than code.
_PATCH_FILE_BYTES = 100_000
_PATCH_FILES = 200


def describe_environment(n_processes: int, sessions: Path) -> dict[str, Any]:
    """Command, code, machine and versions, as plain types.

    Args:
        n_processes: How many take part in the run.
        sessions: Folder of the session folders, which are not part of the code.
    """
    code = _code_folder()
    status = _run("git", "-C", str(code), "status", "--porcelain", *_all_but(sessions))
    jobs = (os.environ[name] for name in _JOB_ID_VARIABLES if name in os.environ)
    return {
        "command": shlex.join(["python", *sys.argv]),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "n_processes": n_processes,
        "job_id": next(jobs, None),
        "git_commit": (_run("git", "-C", str(code), "rev-parse", "HEAD") or "").strip() or None,
        "git_dirty": bool(status),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in _PACKAGES},
        "gpus": _gpus(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    query = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return [f"{line}".strip() for line in (_run(*query) or "").splitlines()]


def _code_folder() -> Path:
    """Where the program lies that was started; its repository is that of the user's code."""
    return Path(sys.argv[0]).absolute().parent


def uncommitted_changes(sessions: Path) -> str:
    """The diff of the code against its commit, small untracked files included.

    Args:
        sessions: Folder of the session folders, which are not part of the code.
    """
    top = (_run("git", "-C", str(_code_folder()), "rev-parse", "--show-toplevel") or "").strip()
    if not top:
        return ""
    # Whatever the user's own settings are, `git apply` must be able to read it.
    diff = [
        "git",
        "-C",
        top,
        "-c",
        "diff.noprefix=false",
        "-c",
        "diff.mnemonicPrefix=false",
        "diff",
    ]
    diff += ["--no-ext-diff", "--no-color", "--no-textconv", "--binary"]
    patch = _run(*diff, "HEAD", *_all_but(sessions)) or ""
    list_untracked = ("git", "-C", top, "ls-files", "--others", "--exclude-standard", "-z")
    untracked = _run(*list_untracked, *_all_but(sessions)) or ""
    for name in [name for name in untracked.split("\0") if name][:_PATCH_FILES]:
        path = Path(top, name)
        if path.is_file() and path.stat().st_size <= _PATCH_FILE_BYTES:
            patch += _run(*diff, "--no-index", os.devnull, name, success=(0, 1)) or ""
    return patch


def _all_but(folder: Path) -> list[str]:
    """The pathspec of the whole repository without a folder, which may lie outside it."""
    top = _run("git", "-C", str(_code_folder()), "rev-parse", "--show-toplevel") or ""
    path = os.path.relpath(folder.absolute().resolve(), top.strip() or ".")
    inside = not path.startswith("..") and path != "."
    return ["--", ":(top)", f":(top,exclude){path}"] if inside else []


def _run(*command: str, success: tuple[int, ...] = (0,)) -> str | None:
    """The output of a command, or None if it is missing or fails."""
    try:
        result = subprocess.run(command, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # As it is: a patch may hold "\r\n", and bytes that are no UTF-8.
    output = result.stdout.decode(errors="surrogateescape")
    return output if result.returncode in success else None
