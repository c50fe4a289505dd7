"""Writes config.yaml and environment.yaml, and keeps what they were when they change."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_trainer.session.door import read_bounded, write_anew
from lightning_trainer.session.lock import SessionLock
from lightning_trainer.session.place import HeldFolder
from lightning_trainer.session.program import recorded_command
from lightning_trainer.session.secrets import hide
from lightning_trainer.session.settings import differences, read_yaml, replace_text

_MOST_BYTES = 2**28  # of a file that is compared with a new one
_OF_GPUS = ("gpus", "gpu_libraries", "gpu_kernels")  # in environment.yaml


class DescribedFolder:
    """A folder with the settings and the environment of a run."""

    def __init__(self, path: str | os.PathLike[str] = "") -> None:
        self._path = Path(path)
        self._held: HeldFolder | None = None

    @property
    def path(self) -> Path:
        """The folder; empty in a process that does not know it yet."""
        if self._held:
            self._path = self._held.find(self._path)
        return self._path

    @path.setter
    def path(self, path: Path) -> None:
        self._path = path

    def hold(self, lock: SessionLock) -> None:
        """Follows the folder, which is locked, until `release`."""
        self._held = HeldFolder(self._path, lock)

    def release(self) -> None:
        if self._held:
            self._held.close()
            self._held = None

    @property
    def is_deleted(self) -> bool:
        """Whether a folder that a run holds has been deleted, or moved to another disk."""
        return self._held is not None and self._held.is_deleted

    def restore(self) -> None:
        """Writes again what has been deleted of a folder that a run holds; raises as it does."""
        if self._held:
            self._held.restore(self.path)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.yaml"

    def read_config(self) -> dict[str, Any] | None:
        """The settings in config.yaml; None if it is missing or damaged."""
        return read_yaml(self.config)

    def first_config(self) -> dict[str, Any] | None:
        """The settings of the first start, where later ones differ."""
        return read_yaml(self.path / "config_1.yaml")

    def write_config(self, settings: str, before: str = "", secrets: Sequence[str] = ()) -> None:
        """Writes config.yaml; keeps earlier ones with other settings as config_1.yaml, ...

        Args:
            settings: As YAML.
            before: Those of the run so far, where a file that was edited by hand lacks them.
            secrets: Texts that a person may have put into the file, and that are hidden.
        """
        head = f"# {recorded_command('fit', '--config', self.config.name)}\n"
        text = f"{head}{settings}"
        earlier = [f"{head}{before}"] if before else []
        if self.config.exists():
            found = read_bounded(self.config, _MOST_BYTES).decode(errors="surrogateescape")
            earlier.append(hide(found, secrets))
        for content in (e.encode(errors="surrogateescape") for e in earlier if e != text):
            if not any(_holds(path, content) for path in self.path.glob("config_*.yaml")):
                write_anew(_unused(self.path, "config_{}.yaml"), content)
        self._write(self.config, text)

    def record_environment(self, now: dict[str, Any], patch: str) -> list[str]:
        """Writes environment.yaml and, where the code differs from its commit, uncommitted.patch.

        The first start stays on top; later starts are listed under `restarts`.

        Args:
            now: This start's environment, as plain types.
            patch: The code's difference from its commit; may be empty.

        Returns:
            A line for each difference from the first start.
        """
        recorded, changes = self._read_environment()
        first, content = self.path / "uncommitted.patch", patch.encode(errors="surrogateescape")
        exists = os.path.lexists(first)
        path = _unused(self.path, "uncommitted_{}.patch") if exists else first
        is_new = not _holds(first, content)
        if content and (recorded is None or is_new):
            write_anew(path, content)
        if recorded is None:
            recorded = now
        else:
            changes += differences(_comparable(recorded), _comparable(now))
            if content and is_new:
                now["patch"] = path.name
                changes.append(f"uncommitted changes: see {path.name}")
            recorded.setdefault("restarts", []).append(now)
        self._write(self.environment, yaml.safe_dump(recorded, sort_keys=False))
        return changes

    def record_packages(self, now: Mapping[str, str]) -> list[str]:
        """Writes packages.txt, for `pip install -r`; later starts with others get packages_1.txt.

        Returns:
            A line for each difference from the first start, without those of environment.yaml.
        """
        first = self.path / "packages.txt"
        content = "".join(f"{name}=={version}\n" for name, version in now.items()).encode()
        if not os.path.lexists(first):
            write_anew(first, content)
            return []
        if _holds(first, content):
            return []
        if not any(_holds(path, content) for path in self.path.glob("packages_*.txt")):
            write_anew(_unused(self.path, "packages_{}.txt"), content)
        lines = read_bounded(first, _MOST_BYTES).decode(errors="replace").splitlines()
        before = dict(line.partition("==")[::2] for line in lines)
        told = (read_yaml(self.environment) or {}).get("packages") or {}
        names = [name for name in {**before, **now} if name not in told]
        old, new = ({name: each.get(name) for name in names} for each in (before, now))
        return differences(old, new, "packages.")

    def _read_environment(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The content of environment.yaml, if any, and a line if it is damaged and kept aside."""
        recorded = read_yaml(self.environment)
        restarts = (recorded or {}).get("restarts", [])
        is_whole = isinstance(restarts, list) and all(isinstance(r, dict) for r in restarts)
        if not self.environment.exists() or (recorded and is_whole):
            return recorded, []
        aside = _unused(self.path, "environment_{}.yaml")
        write_anew(aside, read_bounded(self.environment, _MOST_BYTES))
        if recorded:
            recorded["restarts"] = []
        return recorded, [f"{self.environment} is damaged: kept as {aside.name} and written anew"]

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
        self._write(self.environment, yaml.safe_dump(recorded, sort_keys=False))
        return changes

    def _write(self, path: Path, text: str) -> None:
        replace_text(path, text)
        if self._held:
            self._held.written[path.name] = text


def _comparable(environment: Mapping[str, Any]) -> dict[str, Any]:
    varying = ("command", "started", "job_id", "restarts", "patch", *_OF_GPUS)
    return {key: value for key, value in environment.items() if key not in varying}


def _holds(path: Path, content: bytes) -> bool:
    try:
        return read_bounded(path, len(content)) == content
    except (OSError, ValueError):
        return False


def _unused(folder: Path, pattern: str) -> Path:
    paths = (folder / pattern.format(n) for n in itertools.count(1))
    return next(path for path in paths if not os.path.lexists(path))
