"""What a session folder tells of its run, whatever state it is in. Knows no torch."""

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_trainer.session.checkpoint_header import read_header
from lightning_trainer.session.folder import CONFIG_KEY, Session
from lightning_trainer.session.lock import SessionLock
from lightning_trainer.session.metrics_csv import Curves

RUNNING, FINISHED, INTERRUPTED, FAILED = "running", "finished", "interrupted", "failed"

NAME = re.compile(
    r"session_(?P<machine>.+?)_(?P<started>\d{4}(_\d\d){5})_(?P<tag>.+)"  # of Session.create
)
_EVALUATION = re.compile(r"\((validate|test|predict), ")  # in what the lock says of its holder
_EVALUATES = re.compile(r"^python \S+ (validate|test|predict)\b")  # a recorded command
_LOG_BYTES = 2**14
_START = re.compile(r"^(?:Going on with |Parameters: )", re.MULTILINE)
_END = re.compile(r"^(Finished|Stopped|Stopped by \w+) at iteration (\d+)$", re.MULTILINE)
_ELAPSED = re.compile(r"(?:time elapsed|^Total time): +(\d+)h(\d\d)m(\d\d)s", re.MULTILINE)
_ERROR = re.compile(r"^(?:error: |Traceback )", re.MULTILINE)


@dataclass
class Record:
    """What is known of a session; None where it is not.

    Attributes:
        path: The folder.
        tag: Name of the experiment.
        started: Date and time of the first start.
        state: RUNNING, FINISHED, INTERRUPTED or FAILED.
        iteration: Iterations done, also those after the last checkpoint.
        max_steps: Iterations of the whole run; None if it ends by something else.
        score_name: Name of the score among the logged numbers.
        best_score: Best score so far.
        best_iteration: Iterations done when it was reached.
        examples_per_s: Over the run, validations and checkpoints left out.
        hours: Time in training, over all starts.
        commit: Of the newest start: seven digits, and + if something was uncommitted.
        settings: Every setting by the name of its option, e.g. "model.learning_rate".
    """

    path: Path
    tag: str
    started: str
    state: str = INTERRUPTED
    iteration: int | None = None
    max_steps: int | None = None
    score_name: str | None = None
    best_score: float | None = None
    best_iteration: int | None = None
    examples_per_s: float | None = None
    hours: float | None = None
    commit: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Reads the folder; what is missing or damaged stays unknown."""
        session, curves = Session(path), Curves(path / "metrics.csv")
        header = read_header(session.last_checkpoint) or read_header(session.best_checkpoint)
        config = _read_mapping(session.config) or _part(header, CONFIG_KEY)
        environment = _read_mapping(session.environment)
        named = NAME.fullmatch(path.name)
        tag, started = (named["tag"], _iso(named["started"])) if named else (path.name, "")
        # A session of its own may also be that of a test, of a checkpoint from elsewhere.
        trains = not _EVALUATES.search(str(environment.get("command", "")))
        record = cls(
            path,
            tag=str(config.get("tag") or tag),
            started=str(environment.get("started") or started),
            max_steps=_natural(_part(config, "trainer").get("max_steps")) if trains else None,
            commit=_commit(environment),
            settings=flatten(config),
        )
        log = _read_end(session.log())
        record._add_progress(header, curves.newest("timing/examples_per_s"), log)
        record._add_score(header, curves)
        record.state = record._find_state(header, log, trains)
        return record

    def _add_progress(self, header: Mapping[str, Any], newest: dict[str, float], log: str) -> None:
        """How far, how fast, how long: the checkpoint knows best, but others may be newer."""
        ends = [int(end[2]) for end in _END.finditer(log)]
        reached = [_number(header.get("global_step")), newest.get("step"), *ends[-1:]]
        self.iteration = max((int(n) for n in reached if n is not None), default=None)
        times = _part(header, "callbacks", "PrintProgress", "times")
        examples, iterations_s, elapsed_s = (
            _number(times.get(name)) for name in ("examples", "iterations_s", "elapsed_s")
        )
        self.examples_per_s = newest.get("timing/examples_per_s")
        if examples and iterations_s:
            self.examples_per_s = examples / iterations_s
        clocks = [int(h) * 3600 + int(m) * 60 + int(s) for h, m, s in _ELAPSED.findall(log)]
        seconds = max([elapsed_s or 0.0, *clocks[-1:]])
        self.hours = seconds / 3600 or None

    def _add_score(self, header: Mapping[str, Any], curves: Curves) -> None:
        scores = [n for n in curves.names if n.startswith("val/") and n != "val/loss"]
        named = self.settings.get("model.score_name")
        self.score_name = f"val/{named}" if named else next(iter(scores), None)
        report = _part(header, "callbacks", "ReportEvaluation")
        if report:
            self.best_score = _number(report.get("best_score"))
            if self.best_score is not None:
                self.best_iteration = _natural(report.get("best_iteration"))
        elif self.score_name:
            sign = -1 if self.settings.get("model.score_mode") == "min" else 1
            iterations, values = curves.read([self.score_name]).get(self.score_name, ([], []))
            pairs = zip(iterations, values, strict=True)
            known = [(iteration, value) for iteration, value in pairs if value == value]
            if known:
                self.best_iteration, self.best_score = max(known, key=lambda pair: sign * pair[1])

    def _find_state(self, header: Mapping[str, Any], log: str, trains: bool) -> str:
        """From what can't lie, a lock that ends with its process, to the log's last words."""
        holder = SessionLock(self.path).holder()
        if holder and not _EVALUATION.search(holder):
            return RUNNING
        if os.path.exists(self.path / "failure.txt"):  # in a folder that can't be read as well
            return FAILED
        # Without a checkpoint that says so, the last validation counts as done.
        validated = _part(header, "callbacks", "ValidationSchedule").get("validated", True)
        done = _number(header.get("global_step", self.iteration))
        if done is not None and self.max_steps is not None and done >= self.max_steps and validated:
            return FINISHED
        newest_start = [0, *(start.start() for start in _START.finditer(log))][-1]
        log = log[newest_start:]
        end = _END.search(log)
        if end is None and _ERROR.search(log):
            return FAILED
        if end is None:
            return INTERRUPTED if trains else FINISHED
        return {"Finished": FINISHED, "Stopped": FAILED}.get(end[1], INTERRUPTED)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of any depth by the names of their options; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}".lstrip(".")
        flat |= flatten(value, name) if isinstance(value, Mapping) else {name: value}
    return flat


def _iso(time: str) -> str:
    """2024-02-29T12:00:07 of 2024_02_29_12_00_07."""
    parts = time.split("_")
    return f"{'-'.join(parts[:3])}T{':'.join(parts[3:])}"


def _part(mapping: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """What lies below some keys; empty if that is no mapping."""
    for key in keys:
        value = mapping.get(key)
        mapping = value if isinstance(value, Mapping) else {}
    return mapping


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None


def _natural(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _commit(environment: Mapping[str, Any]) -> str | None:
    restarts = environment.get("restarts")
    newest = restarts[-1] if isinstance(restarts, list) and restarts else environment
    commit = newest.get("git_commit") if isinstance(newest, Mapping) else None
    return f"{str(commit)[:7]}{'+' if newest.get('git_dirty') else ''}" if commit else None


def _read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file; empty if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        content = yaml.load(path.read_text(), Loader=_Loader)
        if isinstance(content, dict):
            return content
    return {}


# Ten times as fast, where PyYAML was built with it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _read_end(path: Path) -> str:
    """The last lines of a text, which may be long."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(file.seek(0, 2) - _LOG_BYTES, 0))
        return file.read().decode(errors="replace")
    return ""
