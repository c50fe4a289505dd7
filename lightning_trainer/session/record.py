"""Reads a session folder in any state: progress, score, speed and settings of its run."""

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_trainer.session.checkpoint_header import layer_state, part, read_header
from lightning_trainer.session.folder import Session
from lightning_trainer.session.lock import SessionLock
from lightning_trainer.session.metrics_csv import MetricsReader
from lightning_trainer.session.run_record import RunRecord
from lightning_trainer.session.settings import flatten, read_yaml

RUNNING, FINISHED, INTERRUPTED, FAILED = "running", "finished", "interrupted", "failed"

# The name that `Session.create` gives a folder.
NAME = re.compile(r"session_(?P<machine>.+?)_(?P<started>\d{4}(_\d\d){5})_(?P<tag>.+)")


@dataclass
class Record:
    """The facts about a session; None where one is not known."""

    path: Path
    tag: str  # name of the experiment
    started: str  # date and time of the first start
    state: str = INTERRUPTED  # RUNNING, FINISHED, INTERRUPTED or FAILED
    iteration: int | None = None  # iterations done, with those after the last checkpoint
    max_steps: int | None = None  # iterations of the whole run; None if something else ends it
    score_name: str | None = None  # name of the score among the logged numbers
    best_score: float | None = None
    best_iteration: int | None = None  # iterations done at the best score
    examples_per_s: float | None = None  # without validations and checkpoints
    hours: float | None = None  # time in training, over all starts
    commit: str | None = None  # of the newest start: seven digits, and + for uncommitted changes
    # Every setting by the name of its option, e.g. "model.learning_rate".
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Reads the folder; leaves out missing and damaged facts."""
        session, metrics = Session(path), MetricsReader(path / "metrics.csv")
        run, (saved, state) = RunRecord.read(path), _newest_checkpoint(session)
        config = session.read_config() or part(state, "settings")
        environment = read_yaml(session.environment) or {}
        tag, started = path.name, ""
        if named := NAME.fullmatch(path.name):
            tag = named["tag"]
            started = "{}-{}-{}T{}:{}:{}".format(*named["started"].split("_"))
        record = cls(
            path,
            tag=str(config.get("tag") or tag),
            started=str(environment.get("started") or started),
            commit=_commit(environment),
            settings=flatten(config),
        )
        # A test of a foreign checkpoint also has a session.
        if run is None or run.command == "fit":
            ends = _natural(part(config, "trainer").get("max_steps"))
            record.max_steps = ends or (run.n_iterations if run else None)
        step, newest = metrics.newest("timing/examples_per_s")
        reached = [saved, step, run.iteration if run else None]
        record.iteration = max((n for n in reached if n is not None), default=None)
        record._add_times((run.times if run else None) or part(state, "times"), newest)
        best = part(state, "best")
        score = (run.score if run else None) or {**best, "best": best.get("score")}
        record._add_score(score, metrics)
        record.state = record._find_state(run, saved, bool(state.get("validated", True)))
        return record

    def _add_times(self, times: Mapping[str, Any], newest: float | None) -> None:
        examples, iterations_s, elapsed_s = (
            _number(times.get(name)) for name in ("examples", "iterations_s", "elapsed_s")
        )
        self.examples_per_s = examples / iterations_s if examples and iterations_s else newest
        self.hours = elapsed_s / 3600 if elapsed_s else None

    def _add_score(self, known: Mapping[str, Any], metrics: MetricsReader) -> None:
        names = [n for n in metrics.names if n.startswith("val/") and n != "val/loss"]
        named = self.settings.get("model.score_name")
        default = f"val/{named}" if named else next(iter(names), None)
        name = known.get("name")
        self.score_name = name if isinstance(name, str) else default
        self.best_score = _number(known.get("best"))
        if self.best_score is not None:
            self.best_iteration = _natural(known.get("iteration"))
        elif self.score_name:
            sign = -1 if self.settings.get("model.score_mode") == "min" else 1
            curve = metrics.curves([self.score_name]).get(self.score_name, ([], []))
            points = [(n, value) for n, value in zip(*curve, strict=True) if value == value]
            if points:
                self.best_iteration, self.best_score = max(points, key=lambda p: sign * p[1])

    def _find_state(self, run: RunRecord | None, saved: int | None, validated: bool) -> str:
        """Trusts a lock first, because it ends with its process, then the run's own record."""
        commands = {"fit", run.command if run else "fit"}
        if any(map(SessionLock(self.path).is_held_for, commands)):
            return RUNNING
        if os.path.exists(self.path / "failure.txt"):  # no error in an unreadable folder
            return FAILED
        if run and run.state in (FINISHED, INTERRUPTED, FAILED):
            return run.state
        done = saved is not None and self.max_steps is not None and saved >= self.max_steps
        return FINISHED if done and validated else INTERRUPTED


def _newest_checkpoint(session: Session) -> tuple[int | None, dict[str, Any]]:
    """Iterations done at the newest readable checkpoint, and this library's state in it."""
    for path in (session.last_checkpoint, session.best_checkpoint):
        with contextlib.suppress(ValueError):
            header = read_header(path)
            return header["global_step"], layer_state(header)
    return None, {}


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None


def _natural(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _commit(environment: Mapping[str, Any]) -> str | None:
    restarts = environment.get("restarts")
    newest = restarts[-1] if isinstance(restarts, list) and restarts else environment
    commit = newest.get("git_commit") if isinstance(newest, Mapping) else None
    return f"{str(commit)[:7]}{'+' if newest.get('git_dirty') else ''}" if commit else None
