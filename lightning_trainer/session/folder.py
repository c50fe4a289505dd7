"""Makes and finds session folders, and reads and writes the files in them."""

import contextlib
import itertools
import math
import os
import re
import shlex
import shutil
import socket
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from lightning_trainer.session.checkpoint_header import find_fault, reach
from lightning_trainer.session.environment import program
from lightning_trainer.session.settings import differences, read_yaml, replace_text

_OF_GPUS = ("gpus", "gpu_libraries", "gpu_kernels")  # in environment.yaml
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+@-]{0,99}")


class Session:
    """A session folder, which may be moved or renamed between runs: its path is its only state.

    Attributes:
        path: The folder; empty in a process that does not know it yet.
    """

    def __init__(self, path: str | os.PathLike[str] = "") -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, output_path: str, tag: str) -> "Session":
        """Makes `output_path/session_{machine}_{YYYY_MM_DD_HH_MM_SS}_{tag}`.

        A second run that starts in the same second gets a name that ends in _2.

        Raises:
            ValueError: If the tag can't be part of a folder's name.
            OSError: If the folder can't be made.
        """
        check_tag(tag)
        machine = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().split(".")[0])
        base = f"session_{machine}_{datetime.now():%Y_%m_%d_%H_%M_%S}_{tag}"
        try:
            Path(output_path).mkdir(parents=True, exist_ok=True)
            for n in itertools.count(1):
                path = Path(output_path, base if n == 1 else f"{base}_{n}")
                with contextlib.suppress(FileExistsError):
                    path.mkdir()
                    break
        except OSError as ex:
            raise OSError(
                f"`output_path` is {output_path!r}, where no session folder can be made "
                f"({ex.strerror}): give a folder that you may write to"
            ) from ex
        return cls(path)

    @classmethod
    def around(cls, path: str | os.PathLike[str]) -> "Session | None":
        """The session of a session folder or of a checkpoint in one; None for other paths."""
        path = Path(path)
        if path.joinpath("config.yaml").is_file():
            return cls(path)
        folder = path.absolute().parent.parent
        if path.absolute().parent.name == "checkpoints" and (folder / "config.yaml").is_file():
            relative = Path(os.path.relpath(folder))
            return cls(folder if ".." in relative.parts else relative)
        return None

    @classmethod
    def of_job(cls, output_path: str, job_id: str | None, command: str) -> "Session | None":
        """The newest session that a scheduler's job started by this command; None without one."""
        for path in sorted(Path(output_path).glob("*/environment.yaml"), reverse=True):
            recorded = read_yaml(path) or {}
            if job_id and (recorded.get("job_id"), recorded.get("command")) == (job_id, command):
                return cls(path.parent)
        return None

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.yaml"

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "best.ckpt"

    def log(self, rank: int = 0) -> Path:
        """The copy of one process's terminal output."""
        return self.path / (f"log_rank{rank}.txt" if rank else "log.txt")

    def find_checkpoint(self, best: bool) -> tuple[Path, list[str]]:
        """The undamaged checkpoint to use.

        Args:
            best: Prefers best.ckpt to last.ckpt; else prefers the one with more iterations.

        Returns:
            The path, and for each preferred checkpoint that can't be used its path and damage.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If a newer version of this library has written one.
        """
        reached = {p: reach(p) for p in (self.best_checkpoint, self.last_checkpoint) if p.exists()}
        existing = list(reached)
        if not best:
            # An unreadable one may have the most iterations. At equal ones last.ckpt comes first.
            far = {path: (math.inf,) if isinstance(r, str) else r for path, r in reached.items()}
            existing = sorted(reversed(existing), key=lambda path: far[path], reverse=True)
        faults: list[str] = []
        for path in existing:
            reason = reached[path]
            fault = reason if isinstance(reason, str) else find_fault(path)
            if not fault:
                return path, faults
            faults.append(f"{path} {fault}")
        why = " and ".join(faults) or "it stopped before its first one was written"
        raise FileNotFoundError(
            f"{self.path} has no checkpoint to use: {why}. Start again with "
            f"`fit --config {self.config}`"
        )

    def read_config(self) -> dict[str, Any] | None:
        """The settings in config.yaml; None if it is missing or damaged."""
        return read_yaml(self.config)

    def write_config(self, text: str) -> None:
        """Writes config.yaml; keeps an earlier one with other settings as config_1.yaml, ..."""
        text = f"# python cli.py fit --config {self.config.name}\n{text}"
        if self.config.exists() and self.config.read_text() != text:
            shutil.copyfile(self.config, _unused(self.path, "config_{}.yaml"))
        replace_text(self.config, text)

    def record_environment(self, now: dict[str, Any], patch: str) -> list[str]:
        """Writes environment.yaml and, where the code differs from its commit, uncommitted.patch.

        The first start stays on top; later starts are listed under `restarts`.

        Args:
            now: This start's environment, as plain types.
            patch: The code's difference from its commit; may be empty.

        Returns:
            A line for each difference from the first start.
        """
        recorded = read_yaml(self.environment)
        changes: list[str] = []
        first, content = self.path / "uncommitted.patch", patch.encode(errors="surrogateescape")
        path = _unused(self.path, "uncommitted_{}.patch") if first.exists() else first
        is_new = not first.exists() or first.read_bytes() != content
        if content and (recorded is None or is_new):
            path.write_bytes(content)
        if recorded is None:
            recorded = now
        else:
            changes = differences(_comparable(recorded), _comparable(now))
            if content and is_new:
                now["patch"] = path.name
                changes.append(f"uncommitted changes: see {path.name}")
            recorded.setdefault("restarts", []).append(now)
        replace_text(self.environment, yaml.safe_dump(recorded, sort_keys=False))
        return changes

    def record_gpus(self, now: dict[str, Any]) -> list[str]:
        """Adds the newest start's GPUs to environment.yaml.

        Returns:
            A line for each difference from the first start.
        """
        recorded = read_yaml(self.environment) or {}
        known = [key for key in now if key in recorded]
        changes = differences({k: recorded[k] for k in known}, {k: now[k] for k in known})
        newest = [recorded, *recorded.get("restarts", [])][-1]
        newest |= now
        replace_text(self.environment, yaml.safe_dump(recorded, sort_keys=False))
        return changes


def check_tag(tag: str | None) -> None:
    """Raises ValueError for a tag that can't be part of a folder's name."""
    if not _TAG.fullmatch(tag or ""):
        raise ValueError(
            f"`tag` is {tag!r}: use 1 to 100 letters, digits and any of _ . , = + @ - "
            "(it becomes part of the folder's name)"
        )


def go_on_command(command: str, path: Path) -> str:
    """The command line that runs `command` (fit, test, ...) on a session folder."""
    *module, script = program()
    script = script if module else os.path.relpath(script)
    return shlex.join(["python", *module, script, command, "--ckpt_path", str(path)])


def _comparable(environment: Mapping[str, Any]) -> dict[str, Any]:
    varying = ("command", "started", "job_id", "restarts", "patch", *_OF_GPUS)
    return {key: value for key, value in environment.items() if key not in varying}


def _unused(folder: Path, pattern: str) -> Path:
    paths = (folder / pattern.format(n) for n in itertools.count(1))
    return next(path for path in paths if not path.exists())
