"""What `sessions` shows of config.yaml and environment.yaml, as run.json keeps it.

To read both takes several milliseconds, to read run.json a tenth of one. A file that has another
size or time than it had then is read itself.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_trainer.session.settings import flatten

_FILES = ("config.yaml", "environment.yaml")


def facts_of(config: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of both files as far as a table shows them."""
    restarts = environment.get("restarts")
    newest = restarts[-1] if isinstance(restarts, list) and restarts else environment
    newest = newest if isinstance(newest, Mapping) else {}
    commit = newest.get("git_commit")
    return {
        "settings": flatten(config),
        "started": environment.get("started"),
        "commit": f"{str(commit)[:7]}{'+' if newest.get('git_dirty') else ''}" if commit else None,
    }


def with_files(facts: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """The facts with size and time of both files, for run.json; None if one is missing."""
    files = _state_of(folder)
    return {**facts, "files": files} if files else None


def still_true(facts: Any, folder: Path) -> dict[str, Any] | None:
    """The facts of a run.json, if they are of the files that are there now."""
    is_whole = isinstance(facts, dict) and isinstance(facts.get("settings"), dict)
    known = is_whole and facts.get("files")
    return facts if known and known == _state_of(folder) else None


def _state_of(folder: Path) -> list[int]:
    try:
        stats = [os.stat(folder / name) for name in _FILES]
    except OSError:
        return []
    return [number for stat in stats for number in (stat.st_size, stat.st_mtime_ns)]
