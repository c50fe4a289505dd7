"""Where and with what a run is started: code, machine, versions."""

import functools
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning_trainer.session.secrets import hide, hide_in_command

_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "numpy")
_MODULE = Path(__file__).parents[1] / "__main__.py"
_JOB_ID_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
# Untracked files up to this size go into the patch; larger ones are data rather than code.
_PATCH_FILE_BYTES = 100_000
_PATCH_FILES = 200
# Files that hold secrets as a rule.
_PRIVATE = (".env", ".env.*", "*.pem", "*.key", "id_rsa*", ".netrc", "credentials*")


def job_id() -> str | None:
    """The scheduler's name for the job that this process is part of, if there is one."""
    ids = (os.environ[name] for name in _JOB_ID_VARIABLES if name in os.environ)
    return next(ids, None)


def shown_command(argv: Sequence[str], secrets: Sequence[str] = ()) -> str:
    """What was typed, with *** in place of secrets."""
    return shlex.join(["python", *program(), *hide_in_command(argv, secrets)])


def program() -> list[str]:
    """What was typed after `python`: the script, or `-m lightning_trainer`."""
    is_module = Path(sys.argv[0]).absolute() == _MODULE
    return ["-m", _MODULE.parent.name] if is_module else [sys.argv[0]]


def describe_environment(command: str, n_processes: int, sessions: Path) -> dict[str, Any]:
    """Command, code, machine and versions, as plain types.

    Args:
        command: What was typed.
        n_processes: How many take part in the run.
        sessions: Folder of the session folders, which are not part of the code.
    """
    status = _git("status", "--porcelain", *_code_paths(sessions))
    return {
        "command": command,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "n_processes": n_processes,
        "job_id": job_id(),
        "git_commit": (_git("rev-parse", "HEAD") or "").strip() or None,
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
    return [line.strip() for line in (_run(*query) or "").splitlines()]


def uncommitted_changes(sessions: Path, secrets: Sequence[str] = ()) -> str:
    """The diff of the code against its commit, small untracked files included.

    Files that hold secrets as a rule, such as `.env`, are left out.

    Args:
        sessions: Folder of the session folders, which are not part of the code.
        secrets: What it must not show.
    """
    # Whatever the user's own settings are, `git apply` must be able to read it.
    diff = ["-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false", "diff"]
    diff += ["--no-ext-diff", "--no-color", "--no-textconv", "--binary"]
    paths = _code_paths(sessions)
    patch = _git(*diff, "HEAD", *paths) or ""
    untracked = _git("ls-files", "--others", "--exclude-standard", "-z", *paths) or ""
    for name in [name for name in untracked.split("\0") if name][:_PATCH_FILES]:
        path = Path(_repository(_code_folder()), name)
        if path.is_file() and path.stat().st_size <= _PATCH_FILE_BYTES:
            patch += _git(*diff, "--no-index", os.devnull, name, success=(0, 1)) or ""
    return hide(patch, secrets)


def _code_folder() -> Path:
    """Where the script lies that was started; its repository is that of the user's code."""
    return Path(program()[-1]).absolute().parent


@functools.cache
def _repository(folder: Path) -> str:
    """The top of the repository that a folder lies in; empty if it lies in none."""
    return (_run("git", "-C", str(folder), "rev-parse", "--show-toplevel") or "").strip()


def _code_paths(sessions: Path) -> list[str]:
    """The pathspec of the whole repository without what is no code, or is private."""
    excluded = [f"exclude,glob,icase)**/{pattern}" for pattern in _PRIVATE]
    path = os.path.relpath(sessions.absolute().resolve(), _repository(_code_folder()) or ".")
    if not path.startswith("..") and path != ".":
        excluded.append(f"exclude,literal){path}")
    return ["--", ":(top)", *(f":(top,{pathspec}" for pathspec in excluded)]


def _git(*arguments: str, success: tuple[int, ...] = (0,)) -> str | None:
    """The output of git in the code's repository, or None if there is none or it fails."""
    top = _repository(_code_folder())
    return _run("git", "-C", top, *arguments, success=success) if top else None


def _run(*command: str, success: tuple[int, ...] = (0,)) -> str | None:
    """The output of a command, or None if it is missing or fails."""
    try:
        result = subprocess.run(command, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # As it is: a patch may hold "\r\n", and bytes that are no UTF-8.
    output = result.stdout.decode(errors="surrogateescape")
    return output if result.returncode in success else None
