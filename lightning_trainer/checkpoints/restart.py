"""Finds the checkpoint, session and settings that `--ckpt_path` stands for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_trainer.session.checkpoint_header import (
    find_fault,
    layer_state,
    progress,
    read_header,
)
from lightning_trainer.session.folder import Session


@dataclass
class Restart:
    """A checkpoint to start from."""

    checkpoint: Path  # the file, or the folder of a sharded one
    session: Session | None  # the session to go on with; None makes a new one
    iteration: int  # iterations done at the checkpoint
    validated: bool  # whether a validation that was due there has run
    config: dict[str, Any]  # settings to start from, below those of the command line
    passed_over: list[str]  # newer or better checkpoints that can't be used, and why

    def is_before(self, max_steps: int) -> bool:
        """Whether there is an iteration to do, or the validation of the last one."""
        pending = not self.validated and self.iteration == max_steps
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
        target = Path(path)
        if not target.exists():
            raise FileNotFoundError(
                f"`--ckpt_path` is {path!r}: there is no such session folder or checkpoint file"
            )
        session = Session.around(target)
        passed_over: list[str] = []
        if target.is_dir() and not target.joinpath("meta.pt").exists():
            if session is None:
                raise FileNotFoundError(
                    f"`--ckpt_path` is {path!r}, a folder without a config.yaml: give a session "
                    "folder (session_...) or a checkpoint file"
                )
            target, passed_over = session.find_checkpoint(command != "fit")
        elif fault := find_fault(target):
            raise ValueError(f"`--ckpt_path` is {path!r}, which {fault}{_others(session, target)}")
        at = progress(header := read_header(target))
        if new_session:
            return cls(target, None, *at, {}, passed_over)
        config = session.read_config() if session else None
        config = config or layer_state(header).get("settings")  # a checkpoint carries them too
        if not config:
            raise ValueError(
                f"`--ckpt_path` is {path!r}, which lies in no session folder and does not carry "
                "its settings: give them by `--config`"
            )
        return cls(target, session, *at, config, passed_over)


def _others(session: Session | None, path: Path) -> str:
    checkpoints = (session.last_checkpoint, session.best_checkpoint) if session else ()
    others = [str(c) for c in checkpoints if c.exists() and not c.samefile(path)]
    return f". There is also {' and '.join(others)}" if others else ""
