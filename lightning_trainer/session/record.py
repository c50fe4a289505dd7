"""Reads a session folder in any state: progress, score, speed and settings of its run."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_trainer.session.checkpoint_header import (
    IN_A_TABLE,
    layer_state,
    part,
    read_header,
)
from lightning_trainer.session.facts import facts_of, still_true
from lightning_trainer.session.folder import Session
from lightning_trainer.session.imports import NAME
from lightning_trainer.session.lock import SessionLock
from lightning_trainer.session.metrics_csv import MetricsReader
from lightning_trainer.session.run_record import RunRecord
from lightning_trainer.session.settings import check_stored, flatten, load_yaml

RUNNING, FINISHED, INTERRUPTED, FAILED = "running", "finished", "interrupted", "failed"
DAMAGED = "damaged"  # one of its files can't be read for what it is

_HIGHEST = 1e18  # of a number of the run's own; higher ones are damage
_MOST_BYTES_OF_NUMBERS = 2**24  # of a metrics.csv that is searched for the best score
_LONGEST_REASON = 200  # characters
_LONG_S = 1800.0  # without a sign of life


@dataclass
class Record:
    """The facts about a session; None where one is not known."""

    path: Path
    tag: str  # name of the experiment
    started: str  # date and time of the first start
    silent_hours: float | None = None  # since a running one's last sign of life, where that is long
    state: str = INTERRUPTED  # RUNNING, FINISHED, INTERRUPTED, FAILED or DAMAGED
    iteration: int | None = None  # iterations done, with those after the last checkpoint
    max_steps: int | None = None  # iterations of the whole run; None if something else ends it
    score_name: str | None = None  # name of the score among the logged numbers
    score_mode: str | None = None  # "max" if a higher score is better, "min" if a lower one is
    best_score: float | None = None
    best_iteration: int | None = None  # iterations done at the best score
    examples_per_s: float | None = None  # without validations and checkpoints
    hours: float | None = None  # time in training, over all starts
    commit: str | None = None  # of the newest start: seven digits, and + for uncommitted changes
    # Every setting by the name of its option, e.g. "model.learning_rate".
    settings: dict[str, Any] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)  # a file, and what is wrong with it

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Reads the folder, in bounded time and memory; leaves out missing and damaged facts."""
        session, metrics = Session(path), MetricsReader(path / "metrics.csv")
        damage: list[str] = []
        run = _known(damage, path / "run.json", lambda _: RunRecord.load(path))
        facts = (run and still_true(run.facts, path)) or _read_facts(session, damage)
        saved: int | None = None
        state: Mapping[str, Any] = {}
        has_told = run and run.state != RUNNING and run.score and run.times
        if not (facts["settings"] and has_told):
            saved, state = _newest_checkpoint(session, damage)
        settings = facts["settings"] or flatten(part(state, "settings"))
        tag, started = _told_by_name(path)
        record = cls(
            path,
            tag=str(settings.get("tag") or tag),
            started=str(facts["started"] or started),
            commit=facts["commit"],
            settings=settings,
            damage=damage,
        )
        # A test of a foreign checkpoint also has a session.
        if run is None or run.command == "fit":
            ends = _natural(settings.get("trainer.max_steps"))
            record.max_steps = ends or (run.n_iterations if run else None)
        step, newest = (None, None) if has_told else metrics.newest("timing/examples_per_s")
        reached = [saved, step, run.iteration if run else None]
        record.iteration = max((n for n in reached if n is not None), default=None)
        record._add_times((run.times if run else None) or part(state, "times"), newest)
        best = part(state, "best")
        score = (run.score if run else None) or {**best, "best": best.get("score")}
        record._add_score(score, metrics)
        record.state = record._find_state(run, saved, bool(state.get("validated", True)))
        if record.state == RUNNING:
            record.silent_hours = _silent_hours(path)
        return record

    def _add_times(self, times: Mapping[str, Any], newest: float | None) -> None:
        examples, iterations_s, elapsed_s = (
            _number(times.get(name)) for name in ("examples", "iterations_s", "elapsed_s")
        )
        self.examples_per_s = examples / iterations_s if examples and iterations_s else newest
        self.hours = elapsed_s / 3600 if elapsed_s else None

    def _add_score(self, known: Mapping[str, Any], metrics: MetricsReader) -> None:
        """Takes the run's own word, else looks for the best one among the numbers."""
        name, named = known.get("name"), self.settings.get("model.score_name")
        if not isinstance(name, str):
            names = [n for n in metrics.names if n.startswith("val/") and not _is_loss(n)]
            name = f"val/{named}" if named else next(iter(names), None)
        self.score_name = name
        of_loss = "min" if self.score_name and _is_loss(self.score_name) else None
        modes = [known.get("mode"), self.settings.get("model.score_mode"), of_loss]
        self.score_mode = next((mode for mode in modes if mode in ("max", "min")), None)
        self.best_score = _number(known.get("best"))
        if self.best_score is not None:
            self.best_iteration = _natural(known.get("iteration"))
        elif self.score_name and self.score_mode and metrics.n_bytes < _MOST_BYTES_OF_NUMBERS:
            sign = -1 if self.score_mode == "min" else 1
            curve = metrics.curves([self.score_name]).get(self.score_name, ([], []))
            points = [(n, value) for n, value in zip(*curve, strict=True) if value == value]
            if points:
                self.best_iteration, self.best_score = max(points, key=lambda p: sign * p[1])

    def _find_state(self, run: RunRecord | None, saved: int | None, validated: bool) -> str:
        """Trusts a lock first, because it ends with its process, then the run's own record."""
        commands = {"fit", run.command if run else "fit"}
        if any(map(SessionLock(self.path).is_held_for, commands)):
            return RUNNING
        if self.damage:
            return DAMAGED
        if os.path.exists(self.path / "failure.txt"):  # no error in an unreadable folder
            return FAILED
        if run and run.state in (FINISHED, INTERRUPTED, FAILED):
            return run.state
        done = saved is not None and self.max_steps is not None and saved >= self.max_steps
        return FINISHED if done and validated else INTERRUPTED


def _told_by_name(path: Path) -> tuple[str, str]:
    """Tag and time of the start, as the folder's name has them."""
    if named := NAME.fullmatch(path.name):
        return named["tag"], "{}-{}-{}T{}:{}:{}".format(*named["started"].split("_"))
    return path.name, ""


def _read_facts(session: Session, damage: list[str]) -> dict[str, Any]:
    config, environment = (
        _known(damage, file, load_yaml) or {} for file in (session.config, session.environment)
    )
    return facts_of(config, environment)


def _silent_hours(folder: Path) -> float | None:
    """Hours since a run has written anything a person reads; None if it is not long."""
    times: list[float] = []
    for name in ("log.txt", "metrics.csv", "run.json"):
        with contextlib.suppress(OSError):
            times.append(os.stat(folder / name).st_mtime)
    silent_s = time.time() - max(times, default=time.time())
    return silent_s / 3600 if silent_s > _LONG_S else None


def _known(damage: list[str], path: Path, read: Callable[[Path], Any]) -> Any:
    """What `read` finds in a file; None if it is missing or damaged, which is noted."""
    try:
        return read(path)
    except (FileNotFoundError, PermissionError, NotImplementedError):
        return None
    except (OSError, ValueError) as ex:
        reason = (isinstance(ex, OSError) and ex.strerror) or str(ex)
        damage.append(f"{path.name} {reason}".splitlines()[0][:_LONGEST_REASON])
        return None


def _newest_checkpoint(session: Session, damage: list[str]) -> tuple[int | None, Mapping[str, Any]]:
    """Iterations done at the newest readable checkpoint, and this library's state in it."""
    with contextlib.suppress(MemoryError):  # one is too large for a table, and may be whole
        for path in (session.last_checkpoint, session.best_checkpoint):
            if path.exists() and (header := _known(damage, path, _header)):
                iteration, state = header
                return iteration, state
    return None, {}


def _header(path: Path) -> tuple[int, Mapping[str, Any]]:
    try:
        header = read_header(path, IN_A_TABLE)
    except ValueError as ex:
        raise ValueError(f"can't be read: {str(ex).rpartition('foreign): ')[2]}") from None
    state: Mapping[str, Any] = {}
    with contextlib.suppress(ValueError):  # a newer version has written it, which is no damage
        state = layer_state(header)
    check_stored(state)
    return header["global_step"], state


def _is_loss(name: str) -> bool:
    """Whether a number is a loss, or one of several: "val/loss", "val/night/loss_kl"."""
    last = name.rpartition("/")[2]
    return last == "loss" or last.startswith("loss_")


def _number(value: Any) -> float | None:
    """A number that can be shown and counted with."""
    is_number = type(value) in (int, float) and abs(value) < _HIGHEST
    return value if is_number else None


def _natural(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < _HIGHEST else None
