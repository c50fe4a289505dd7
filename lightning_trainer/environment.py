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


def describe_environment(n_processes: int) -> dict[str, Any]:
    """Command, code, machine and versions, as plain types."""
    code = _code_folder()
    status = _run("git", "-C", str(code), "status", "--porcelain")
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


def uncommitted_changes() -> str:
    """The diff of the code against its commit, small untracked files included."""
    top = (_run("git", "-C", str(_code_folder()), "rev-parse", "--show-toplevel") or "").strip()
    if not top:
        return ""
    patch = _run("git", "-C", top, "diff", "HEAD", "--binary") or ""
    untracked = _run("git", "-C", top, "ls-files", "--others", "--exclude-standard", "-z") or ""
    for name in [name for name in untracked.split("\0") if name][:_PATCH_FILES]:
        path = Path(top, name)
        if path.is_file() and path.stat().st_size <= _PATCH_FILE_BYTES:
            arguments = ("diff", "--no-index", "--binary", os.devnull, name)
            patch += _run("git", "-C", top, *arguments, success=(0, 1)) or ""
    return patch


def _run(*command: str, success: tuple[int, ...] = (0,)) -> str | None:
    """The output of a command, or None if it is missing or fails."""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, errors="surrogateescape", timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode in success else None
