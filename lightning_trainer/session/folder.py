"""The folder of a run: its name, its contents, its checkpoints."""

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

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+@-]{0,99}")


class Session:
    """A session folder. The path is all its state, so it may be moved or renamed between runs.

    Attributes:
        path: The folder; empty in a process that has not been told yet.
    """

    def __init__(self, path: str | os.PathLike[str] = "") -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, output_path: str, tag: str) -> "Session":
        """Makes `output_path/session_{machine}_{YYYY_MM_DD_HH_MM_SS}_{tag}`.

        Two runs that start in the same second get a folder each: the second one's name ends in _2.

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
        """The session that `path` is, or that the checkpoint `path` lies in, if any."""
        path = Path(path)
        if path.joinpath("config.yaml").is_file():
            return cls(path)
        folder = path.absolute().parent.parent
        if path.absolute().parent.name == "checkpoints" and (folder / "config.yaml").is_file():
            return cls(_relative(folder))
        return None

    @classmethod
    def of_job(cls, output_path: str, job_id: str | None, command: str) -> "Session | None":
        """The newest session that a scheduler's job started by this command, if any."""
        for path in sorted(Path(output_path).glob("*/environment.yaml"), reverse=True):
            recorded = read_yaml(path) or {}
            if job_id and (recorded.get("job_id"), recorded.get("command")) == (job_id, command):
                return cls(path.parent)
        return None

    @property
    def config(self) -> Path:
        """Every setting as resolved."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Where and with what the run was started, and started again."""
        return self.path / "environment.yaml"

    @property
    def last_checkpoint(self) -> Path:
        """Where to go on from."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """The weights of the best validation score."""
        return self.path / "checkpoints" / "best.ckpt"

    def log(self, rank: int = 0) -> Path:
        """What the terminal showed, of one process."""
        return self.path / (f"log_rank{rank}.txt" if rank else "log.txt")

    def find_checkpoint(self, best: bool) -> tuple[Path, list[str]]:
        """The checkpoint to test (`best`), or else to go on from.

        Args:
            best: Whether best.ckpt is wanted, and last.ckpt only if there is no other; else the one
                that has come furthest.

        Returns:
            The path, and for each one that should have come before it, why it was passed over.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If a newer version of this library has written one.
        """
        existing = [p for p in (self.best_checkpoint, self.last_checkpoint) if p.exists()]
        reached = {path: reach(path) for path in existing}
        if not best:
            # Stable, so that last.ckpt comes first of two that have come equally far. One that
            # can't be read may have come furthest.
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
        """What config.yaml holds; None if it is damaged."""
        return read_yaml(self.config)

    def write_config(self, text: str) -> None:
        """Writes config.yaml; an earlier one with other settings is kept as config_1.yaml, ..."""
        text = f"# python cli.py fit --config {self.config.name}\n{text}"
        if self.config.exists() and self.config.read_text() != text:
            shutil.copyfile(self.config, _unused(self.path, "config_{}.yaml"))
        replace_text(self.config, text)

    def record_environment(self, now: dict[str, Any], patch: str) -> list[str]:
        """Writes environment.yaml and, where the code differs from its commit, uncommitted.patch.

        A session that goes on keeps what it was first started with; later starts are listed under
        `restarts`.

        Args:
            now: What the run is started with, as plain types.
            patch: The code's difference from its commit; may be empty.

        Returns:
            What differs from the first start, a line each.
        """
        recorded = read_yaml(self.environment)
        if recorded is None:
            recorded, changes = now, []
            self._write_patch(patch)
        else:
            changes = differences(_comparable(recorded), _comparable(now))
            if self._patches() != patch and patch:
                now["patch"] = self._write_patch(patch)
                changes.append(f"uncommitted changes: see {now['patch']}")
            recorded.setdefault("restarts", []).append(now)
        replace_text(self.environment, yaml.safe_dump(recorded, sort_keys=False))
        return changes

    def _patches(self) -> str:
        path = self.path / "uncommitted.patch"
        return path.read_bytes().decode(errors="surrogateescape") if path.exists() else ""

    def _write_patch(self, patch: str) -> str:
        path = self.path / "uncommitted.patch"
        if path.exists():
            path = _unused(self.path, "uncommitted_{}.patch")
        if patch:
            path.write_bytes(patch.encode(errors="surrogateescape"))
        return path.name


def check_tag(tag: str | None) -> None:
    """Refuses a tag that can't be part of a folder's name.

    Raises:
        ValueError: Says what is allowed.
    """
    if not _TAG.fullmatch(tag or ""):
        raise ValueError(
            f"`tag` is {tag!r}: use 1 to 100 letters, digits and any of _ . , = + @ - "
            "(it becomes part of the folder's name)"
        )


def go_on_command(command: str, path: Path) -> str:
    """What to type to run `command` (fit, test, ...) on a session folder."""
    *module, script = program()
    script = script if module else os.path.relpath(script)
    return shlex.join(["python", *module, script, command, "--ckpt_path", str(path)])


def _comparable(environment: Mapping[str, Any]) -> dict[str, Any]:
    varying = ("command", "started", "job_id", "restarts", "patch")
    return {key: value for key, value in environment.items() if key not in varying}


def _relative(path: Path) -> Path:
    relative = Path(os.path.relpath(path))
    return path if ".." in relative.parts else relative


def _unused(folder: Path, pattern: str) -> Path:
    n = 1
    while (path := folder / pattern.format(n)).exists():
        n += 1
    return path
