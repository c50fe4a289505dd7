"""Describes a run's code, machine and versions."""

import contextlib
import functools
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from lightning_trainer.session.program import code_folder, recorded_command
from lightning_trainer.session.run_record import now
from lightning_trainer.session.secrets import hide, hide_in_command, hider_of

_PACKAGES = (
    *("lightning_trainer", "torch", "torchvision", "lightning", "torchmetrics", "jsonargparse"),
    "numpy",
)
_DRIVER = Path("/sys/module/nvidia/version")
_JOB_ID_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
# The patch has this many untracked files at most, each up to this size: larger ones are data.
_PATCH_FILES, _PATCH_FILE_BYTES = 200, 100_000
# Files that usually hold secrets: keys and key stores, files of programs, lists of secrets.
_PRIVATE = (
    *("*.pem", "*.key", "*.p8", "*.p12", "*.pfx", "*.pkcs12", "*.ppk", "*.jks", "*.asc", "*.gpg"),
    *("*.keystore", "*.keyring", "*.keychain", "*.kwallet", "*.kdb", "*.kdbx", "*.psafe3"),
    *("*.ovpn", "*.rdp", "*_rsa", "*_dsa", "*_ecdsa", "*_ed25519", "id_*sa*", "id_ed25519*"),
    *(".env", ".env.*", "*.env", ".envrc*", ".netrc", "_netrc", ".pgpass", "pgpass.conf"),
    *(".my.cnf", ".mylogin.cnf", ".npmrc", ".yarnrc*", ".pypirc", ".dockercfg", ".docker/config*"),
    *(".git-credentials", ".gitconfig", ".boto", ".s3cfg", ".htpasswd", "htpasswd", "*_history"),
    *("*.tfvars", "*.tfstate*", ".vault-token", "kubeconfig*", ".kube/config", "kaggle.json"),
    *("credentials*", "*credentials.json", "*credentials.y*ml", "*credentials.toml", "*.secret"),
    *("*.secrets", "*.token", "auth.json", "client_secret*.json", "*service*account*.json"),
    *(
        f"{name}.{kind}"
        for name in ("*secrets", "secret", "*passwords", "password", "*tokens", "token")
        for kind in ("json", "y*ml", "toml", "ini", "txt", "csv", "cfg", "xml")
    ),
)
# In these files a value after a name may be a variable of the program.
_CODE = (
    "py",
    "pyi",
    "c",
    "cc",
    "cpp",
    "cu",
    "cuh",
    "h",
    "hpp",
    "js",
    "ts",
    "go",
    "rs",
    "java",
    "jl",
)
_SETTINGS = ("yaml", "yml", "toml", "ini", "cfg", "conf", "properties", "env", "json")


def is_first_process() -> bool:
    """Whether this is process 0 of all."""
    env = os.environ
    if "RANK" in env:
        return int(env["RANK"]) == 0
    local, node = env.get("LOCAL_RANK"), env.get("NODE_RANK", env.get("GROUP_RANK"))
    if local is not None or node is not None:
        return int(local or 0) == 0 and int(node or 0) == 0
    return int(env.get("SLURM_PROCID", 0)) == 0


def job_id() -> str | None:
    """The scheduler's name for this process's job; None outside of a job."""
    return next((os.environ[name] for name in _JOB_ID_VARIABLES if name in os.environ), None)


def shown_command(argv: Sequence[str], secrets: Sequence[str] = ()) -> str:
    """The typed command line, with *** in place of secrets."""
    return recorded_command(*hide_in_command(argv, secrets))


def describe_environment(command: str, n_processes: int, sessions: Path) -> dict[str, Any]:
    """The content of environment.yaml; `sessions` is the folder of the session folders.

    `Session.record_gpus` adds the GPUs, which are known later.
    """
    status = _git("status", "--porcelain", *_code_paths(sessions))
    return {
        "command": command,
        "started": now(),
        "host": socket.gethostname(),
        "n_processes": n_processes,
        "job_id": job_id(),
        "git_commit": (_git("rev-parse", "HEAD") or "").strip() or None,
        "git_dirty": bool(status),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in _PACKAGES},
    }


@functools.cache
def installed_packages() -> dict[str, str]:
    """All other packages that can be imported, and their versions, by the names of their folders.

    To read what is in the folders, as `importlib.metadata` does, takes 50 times as long.
    """
    found: dict[str, str] = {}
    for folder in reversed(sys.path):  # the first one wins
        with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
            names = [e.name[: -len(_ENDS)] for e in entries if e.name.endswith(_ENDS)]
            found |= {name: version for name, _, version in (n.partition("-") for n in names)}
    found.pop("lightning_trainer", None)  # environment.yaml has its version and commit
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


_ENDS = ".dist-info"


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def gpu_driver() -> str | None:
    """The version of NVIDIA's driver, which Linux tells in a file."""
    try:
        return _DRIVER.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def uncommitted_changes(sessions: Path, secrets: Sequence[str] = ()) -> str:
    """The diff of the code against its commit, with *** in place of secrets.

    Small untracked files are part of it; private files and the folder `sessions` are not.
    """
    # `git apply` must be able to read it, whatever the user's own settings are.
    diff = ["-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false", "diff"]
    diff += ["--no-ext-diff", "--no-color", "--no-textconv", "--binary"]
    paths = _code_paths(sessions)
    patch = _git(*diff, "HEAD", *paths) or ""
    untracked = _git("ls-files", "--others", "--exclude-standard", "-z", *paths) or ""
    for name in untracked.split("\0")[:-1][:_PATCH_FILES]:
        path = Path(_repository(), name)
        is_small = path.is_file() and path.stat().st_size <= _PATCH_FILE_BYTES
        if is_small and not _hides(path.read_bytes(), secrets):
            patch += _git(*diff, "--no-index", os.devnull, name, success=(0, 1)) or ""
    files = re.split(r"(?m)^(?=diff --git )", patch)
    return "".join(hide(file, secrets, _kind(file)) for file in files)


def _hides(content: bytes, secrets: Sequence[str]) -> bool:
    """Whether a file that git shows in an encoding has a secret."""
    return b"\0" in content and any(True for _ in hider_of(tuple(secrets)).find(content))


def _kind(file: str) -> Literal["text", "code", "settings"]:
    """What a file's part of a patch is of, by the end of its name."""
    suffix = file.partition("\n")[0].rstrip('"').rpartition(".")[2]
    return "code" if suffix in _CODE else "settings" if suffix in _SETTINGS else "text"


def _repository() -> str:
    """The top of the git repository of the started script; empty outside of a repository."""
    return _top(code_folder().absolute())


@functools.cache
def _top(folder: Path) -> str:
    return (_run("git", "-C", str(folder), "rev-parse", "--show-toplevel") or "").strip()


def _code_paths(sessions: Path) -> list[str]:
    """The pathspec of the whole repository, without sessions and private files."""
    excluded = [f"exclude,glob,icase)**/{pattern}" for pattern in _PRIVATE]
    path = os.path.relpath(sessions.absolute().resolve(), _repository() or ".")
    if not path.startswith("..") and path != ".":
        excluded.append(f"exclude,literal){path}")
    return ["--", ":(top)", *(f":(top,{pathspec}" for pathspec in excluded)]


def _git(*arguments: str, success: tuple[int, ...] = (0,)) -> str | None:
    """The output of git in the code's repository; None outside of a repository or on failure."""
    top = _repository()
    return _run("git", "-C", top, *arguments, success=success) if top else None


def _run(*command: str, success: tuple[int, ...] = (0,)) -> str | None:
    """The output of a command; None if it is missing or fails."""
    try:
        result = subprocess.run(command, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if result.returncode not in success:
        return None
    return result.stdout.decode(errors="surrogateescape")  # a patch may hold "\r\n" and any bytes
