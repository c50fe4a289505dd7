"""What `--ckpt_path` means: which checkpoint, which session, which settings."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_trainer.session.checkpoint_header import layer_state
from lightning_trainer.session.folder import Session, find_fault


@dataclass
class Restart:
    """A checkpoint to start from.

    Attributes:
        checkpoint: The file, or the folder of a sharded one.
        session: The session to go on with; None makes a new one.
        iteration: Iterations done at the checkpoint.
        validated: Whether a validation that was due there has run.
        config: Settings to start from, below those of the command line.
        passed_over: Newer or better checkpoints that can't be used, and why.
    """

    checkpoint: Path
    session: Session | None
    iteration: int
    validated: bool
    config: dict[str, Any]
    passed_over: list[str]

    def is_before(self, max_steps: int) -> bool:
        """Whether there is an iteration to do, or the validation of the last one."""
        pending = not self.validated and self.iteration == max_steps
        return max_steps < 0 or self.iteration < max_steps or pending

    @classmethod
    def find(cls, path: str, command: str, new_session: bool) -> "Restart":
        """Finds what `path` stands for.

        Args:
            path: A session folder, or a checkpoint inside or outside one.
            command: "fit" goes on from the newest checkpoint of a folder, others take its best one.
            new_session: Whether to start a new session whatever `path` is; its settings come from
                elsewhere.

        Raises:
            FileNotFoundError: If there is no such thing, or no checkpoint in it.
            ValueError: If the file is no checkpoint, or its settings are not known.
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
            target, passed_over = session.find_checkpoint(command != "fit", reach)
        elif fault := find_fault(target):
            raise ValueError(f"`--ckpt_path` is {path!r}, which {fault}{_others(session, target)}")
        header = read_header(target)
        at = _iteration(header)
        if new_session:
            return cls(target, None, *at, {}, passed_over)
        config = session.read_config() if session else None
        config = config or layer_state(header).get("settings")  # which a checkpoint carries too
        if not config:
            raise ValueError(
                f"`--ckpt_path` is {path!r}, which lies in no session folder and does not carry "
                "its settings: give them by `--config`"
            )
        return cls(target, session, *at, config, passed_over)


def read_header(path: Path) -> dict[str, Any]:
    """A checkpoint without reading its tensors, which stay on the disk.

    Raises:
        ValueError: If it is no whole checkpoint of Lightning.
    """
    file = path / "meta.pt" if path.is_dir() else path
    try:
        header = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        if "global_step" in header and ("state_dict" in header or path.is_dir()):
            return dict(header)
        reason = "it has no training state, only " + ", ".join(list(header)[:5])
    except Exception as ex:  # torch raises many kinds for a damaged or foreign file
        reason = f"{type(ex).__name__}: {ex}".splitlines()[0]
    raise ValueError(
        f"{path} can't be read as a checkpoint of Lightning (truncated, damaged or foreign): "
        f"{reason}"
    )


def _others(session: Session | None, path: Path) -> str:
    checkpoints = (session.last_checkpoint, session.best_checkpoint) if session else ()
    others = [str(c) for c in checkpoints if c.exists() and not c.samefile(path)]
    return f". There is also {' and '.join(others)}" if others else ""


def _iteration(header: dict[str, Any]) -> tuple[int, bool]:
    """Iterations done, and whether a validation that was due there has run."""
    return header["global_step"], layer_state(header).get("validated", True)


def reach(path: Path) -> tuple[int, bool] | str:
    """How far a checkpoint has come, or why that can't be read."""
    try:
        return _iteration(read_header(path))
    except ValueError:
        return find_fault(path) or "is no checkpoint of Lightning"


def dump_settings(settings: dict[str, Any]) -> str:
    """Settings as YAML that jsonargparse reads back as they are."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Quotes text such as 3e-3, a float to jsonargparse but not to PyYAML."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
