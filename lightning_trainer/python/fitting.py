"""fit: trains from Python as the command line does."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_trainer.python.plain import config_text, option_words
from lightning_trainer.python.run_error import RunError
from lightning_trainer.python.trained_session import TrainedSession
from lightning_trainer.session.folder import Session
from lightning_trainer.session.settings import load_yaml


def fit(
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    ckpt_path: str | os.PathLike[str] | None = None,
    **options: Any,
) -> TrainedSession:
    """Trains: a new session, or with `ckpt_path` one that goes on exactly where it stopped.

    What `python cli.py fit` prints is printed, and stands in the session's log.txt.

    Args:
        config: A YAML file, or what one holds as a dict. Classes may be given themselves, in
            place of their `class_path`.
        ckpt_path: A session, its folder, or a checkpoint. With a config as well, a new session
            begins from it.
        options: Settings that win over both, e.g. `tag="a", trainer={"max_steps": 600}`. A group
            changes the keys that it names; the arguments of a class stand in its group, e.g.
            `model={"learning_rate": 3e-3}`.

    Returns:
        The session: its folder, score, state, curves and best model.

    Raises:
        RunError: If the settings are refused or the run fails, in the words of the command line. A
            fault in the project's code is its cause, with the traceback.
        KeyboardInterrupt: If Ctrl-C, or a notebook's button, has ended it; all is saved.
        SystemExit: If another signal has, which is meant for the process.
    """
    words = ["fit", *_config_words(config)]
    if ckpt_path is not None:
        words.append(f"--ckpt_path={os.fspath(ckpt_path)}")
    try:
        words += option_words(options)
    except TypeError as ex:
        raise RunError(str(ex)) from None
    if "torch" not in sys.modules or "lightning.pytorch" not in sys.modules:
        print("Starting `fit`: torch and lightning are imported", flush=True)
    from lightning_trainer.python.running import fit_by_words

    return TrainedSession(fit_by_words(words))


def _config_words(config: Any) -> list[str]:
    if config is None:
        return []
    try:
        if isinstance(config, Mapping):
            return [f"--config={config_text(config)}"]
        load_yaml(Path(config))
    except TypeError as ex:
        raise RunError(str(ex)) from None
    except FileNotFoundError:
        raise RunError(f"`config` is {os.fspath(config)!r}: there is no such file") from None
    except (OSError, ValueError) as ex:
        raise RunError(f"`config` is {os.fspath(config)!r}, which {ex}") from None
    return [f"--config={os.fspath(config)}"]


def load(session: str | os.PathLike[str], device: Any = "cpu") -> TrainedSession:
    """Loads a session with its best model, for inference: `load(session).module`.

    The classes are made with the session's settings and get the best checkpoint's weights. The data
    is read only if `create_model` asks for it by `self.trainer`. What may come from someone else is
    treated as docs/trust.md says.

    Args:
        session: A session, its folder, or a checkpoint in one.
        device: Where the model is put, as torch names it.

    Raises:
        RunError: If there is no such session, or its model can't be made.
    """
    from lightning_trainer.python.loading import load_module

    path = Path(session)
    if (found := Session.around(path)) is None:
        raise RunError(f"{str(path)!r} is no session folder, nor a checkpoint in one")
    return TrainedSession(found.path, load_module(str(path), device))
