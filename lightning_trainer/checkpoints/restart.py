"""Finds the checkpoint, session and settings that `--ckpt_path` stands for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_trainer.session.checkpoint_header import (
    find_fault,
    layer_state,
    part,
    progress,
    read_header,
)
from lightning_trainer.session.folder import Session
from lightning_trainer.session.imports import distrust
from lightning_trainer.session.settings import check_stored
from lightning_trainer.session.slow_start import begin_step

_LOST = "is gone, empty or damaged"


@dataclass
class Restart:
    """A checkpoint to start from."""

    checkpoint: Path  # the file, or the folder of a sharded one
    session: Session | None  # the session to go on with; None makes a new one
    iteration: int  # iterations done at the checkpoint
    validated: bool  # whether a validation that was due there has run
    has_rows: bool  # whether it has rows that metrics.csv lacks
    config: dict[str, Any]  # settings to start from, below those of the command line
    stored: dict[str, Any]  # settings in the checkpoint, of the start that has written it
    passed_over: list[str]  # files of the session that can't be used, why, and what is done

    def is_before(self, max_steps: int) -> bool:
        """Whether there is an iteration to do, or the validation or rows of the last one."""
        pending = (self.has_rows or not self.validated) and self.iteration == max_steps
        return max_steps < 0 or self.iteration < max_steps or pending

    @classmethod
    def find(cls, path: str, command: str, new_session: bool) -> "Restart":
        """Finds the checkpoint of `path`.

        Args:
            path: A session folder, or a checkpoint inside or outside one.
            command: "fit" goes on from the newest checkpoint of a folder, others take its best one.
            new_session: Whether to start a new session, with settings from elsewhere.

        Raises:
            FileNotFoundError: If the path does not exist, or has no checkpoint.
            ValueError: If the file is not a checkpoint, or its settings are not known.
        """
        if not (target := Path(path)).exists():
            raise FileNotFoundError(
                f"`--ckpt_path` is {path!r}: there is no such session folder or checkpoint file"
            )
        begin_step(f"what lies in {path}")
        session = Session.around(target)
        distrust(session.path if session else target)
        passed_over = list[str]()
        if target.is_dir() and not target.joinpath("meta.pt").exists():
            if session is None:
                raise FileNotFoundError(
                    f"`--ckpt_path` is {path!r}, a folder without a config.yaml: give a session "
                    "folder (session_...) or a checkpoint file"
                )
            target, passed_over = session.find_checkpoint(command != "fit")
        elif fault := find_fault(target):
            raise ValueError(f"`--ckpt_path` is {path!r}, which {fault}{_others(session, target)}")
        at = *progress(header := read_header(target)), bool(layer_state(header).get("rows"))
        stored = dict(part(layer_state(header), "settings"))
        if new_session:
            return cls(target, None, *at, {}, stored, passed_over)
        config = _settings(path, session, stored)
        if session and config is stored:
            passed_over.append(f"{session.config} {_LOST}: the settings in {target} are taken")
        return cls(target, session, *at, config, stored, passed_over)


def _settings(path: str, session: Session | None, stored: dict[str, Any]) -> dict[str, Any]:
    """Those of the session, else those in the checkpoint."""
    config = (session and session.read_config()) or stored
    if not config:
        raise ValueError(
            f"`--ckpt_path` is {path!r}, which lies in no session folder and does not carry its "
            "settings: give them by `--config`"
        )
    try:
        check_stored(config)
        check_stored(stored)
    except ValueError as ex:
        raise ValueError(f"`--ckpt_path` is {path!r}, which {ex}") from None
    return config


def _others(session: Session | None, path: Path) -> str:
    checkpoints = (session.last_checkpoint, session.best_checkpoint) if session else ()
    others = [str(c) for c in checkpoints if c.exists() and not c.samefile(path)]
    return f". There is also {' and '.join(others)}" if others else ""
