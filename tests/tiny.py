"""Projects that differ a little from the tiny one, and what their sessions hold."""

import csv
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TinyData, TinyModule
from torch import nn


class Echo(TinyModule):
    """Predicts which samples it was given, and with what result."""

    def predict_step(self, batch, batch_idx):
        return {"i": batch["i"], "x": batch["x"], "output": self.forward_model(batch)}


class WideModule(TinyModule):
    def create_model(self) -> None:
        self.model = nn.Sequential(
            nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Dropout(0.3), nn.ReLU(), nn.Linear(9, 2)
        )


class Breaks(TinyModule):
    """Has a fault that shows at iteration 13, until it is repaired."""

    broken = True

    def forward_model(self, batch):
        if self.broken and self.global_step == 12:
            raise ValueError("a fault in a hook")
        return super().forward_model(batch)


class NoFiles(TinyData):
    def create_data(self) -> None:
        raise ValueError("`data.root` is 'x': there are no images in it, give --data.root FOLDER")


def use_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the streams on their descriptors, as in a process of its own; pytest's go past them.

    No fixture: pytest puts its own streams back before it calls the test.
    """
    for fd, name in ((1, "stdout"), (2, "stderr")):
        monkeypatch.setattr(sys, name, open(fd, "w", buffering=1, closefd=False))  # noqa: SIM115


def weights(session: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(session / f"checkpoints/{name}.ckpt")["state_dict"]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def names(folder: Path) -> set[str]:
    """All files but the lock, those of TensorBoard by their beginning."""
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name.split(".tfevents.")[0] for name in files - {".lock"}}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def settings(session: Path, file: str = "config.yaml") -> dict:
    return yaml.safe_load((session / file).read_text())


def logged(session: Path, name: str) -> dict[int, float]:
    with (session / "metrics.csv").open(newline="") as file:
        return {int(r["step"]): float(r[name]) for r in csv.DictReader(file) if r.get(name)}
