"""A run that is killed, and what must be equal after it has gone on."""

import csv
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from lightning_trainer.checkpoints.saving import SaveCheckpoints


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it is saved."""


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def load(path: Path) -> dict:
    """A checkpoint, a sharded one put together."""
    if not path.is_dir():
        return torch.load(path)
    with tempfile.TemporaryDirectory() as folder:
        dcp_to_torch_save(path, Path(folder, "whole.pt"))
        sharded = torch.load(Path(folder, "whole.pt"))
    optimiser = {name: value for name, value in sharded.items() if name != "state_dict"}
    meta = torch.load(path / "meta.pt")
    return {**meta, "state_dict": sharded["state_dict"], "optimizer_states": optimiser}


def result(session: Path) -> dict:
    """What must be the same: weights, optimiser, scheduler, best score, and every logged number."""
    last, best = (load(session / f"checkpoints/{n}.ckpt") for n in ("last", "best"))
    with (session / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    timeless = [
        {name: value for name, value in row.items() if not name.startswith("timing/")}
        for row in rows
    ]
    return {
        "weights": last["state_dict"],
        "optimiser": last["optimizer_states"],
        "scheduler": last["lr_schedulers"],
        "best": (best["global_step"], best["state_dict"]),
        "score": last["lightning_trainer"]["best"],
        "samples": last["loops"]["fit_loop"]["state_dict"]["combined_loader"],
        "numbers": timeless,
    }


def kill_at(monkeypatch: pytest.MonkeyPatch, hook: str, when) -> None:
    """Makes the run die where `when(trainer)` holds, after the hook has done its work."""
    original = getattr(SaveCheckpoints, hook)

    def dying(self, trainer, *args, **kwargs):
        original(self, trainer, *args, **kwargs)
        if when(trainer) and not trainer.sanity_checking:
            monkeypatch.setattr(SaveCheckpoints, hook, original)
            raise Killed

    monkeypatch.setattr(SaveCheckpoints, hook, dying)


def copy_at(monkeypatch: pytest.MonkeyPatch, hook: str, iterations, folder: Path) -> None:
    """Copies the session where a kill would leave it, after the hook at each iteration.

    The copies are named for their iterations, so that one run stands for many that are killed.
    """
    original = getattr(SaveCheckpoints, hook)

    def copying(self, trainer, *args, **kwargs):
        original(self, trainer, *args, **kwargs)
        copy = folder / str(trainer.global_step)
        if trainer.global_step in iterations and trainer.is_global_zero and not copy.exists():
            shutil.copytree(self.run.session.path, copy, symlinks=True)

    monkeypatch.setattr(SaveCheckpoints, hook, copying)
