"""Session folders made by hand."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_trainer.session.checkpoint_header import KEY
from lightning_trainer.session.run_record import RunRecord

TIMES = {"elapsed_s": 1800.0, "examples": 5000, "iterations_s": 10.0}


def make_session(
    folder: Path,
    tag: str = "run",
    *,
    second: int = 0,
    rows: list[Mapping[str, Any]] | None = None,
    run: Mapping[str, Any] | None = None,
    checkpoint: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    max_steps: int = 100,
) -> Path:
    """A folder as a run of `max_steps` iterations leaves it; run.json has the fields of `run`."""
    path = folder / f"session_node1_2024_02_29_12_00_{second:02d}_{tag}"
    path.mkdir(parents=True)
    config = {
        "tag": tag,
        "trainer": {"max_steps": max_steps},
        "model": {
            "class_path": "projects.a.A",
            "init_args": {"learning_rate": 0.001, "score_mode": "max", **(settings or {})},
        },
    }
    path.joinpath("config.yaml").write_text(yaml.safe_dump(config))
    environment = {
        "started": f"2024-02-29T12:00:{second:02d}+00:00",
        "git_commit": "0123456789abcdef",
        "git_dirty": False,
    }
    path.joinpath("environment.yaml").write_text(yaml.safe_dump(environment))
    path.joinpath("log.txt").write_text("Session: somewhere\n")
    if run is not None:
        make_run(**run).write(path)
    if rows:
        names = dict.fromkeys(["step", *(name for row in rows for name in row)])
        with path.joinpath("metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if checkpoint is not None:
        path.joinpath("checkpoints").mkdir()
        torch.save(checkpoint, path / "checkpoints" / "last.ckpt")
    return path


def make_run(**fields: Any) -> RunRecord:
    """What run.json holds of a run that has ended at iteration 40."""
    score = {"name": "val/accuracy", "mode": "max", "best": 0.875, "iteration": 30}
    known = {"command": "fit", "state": "finished", "iteration": 40, "score": score}
    return RunRecord(**{**known, "times": {**TIMES, "elapsed_s": 5400.0}, **fields})


def make_checkpoint(iteration: int, *, validated: bool = True, **parts: Any) -> dict[str, Any]:
    """What a checkpoint holds besides much else; `parts` are of this library's own state."""
    best = {"name": "val/accuracy", "mode": "max", "score": 0.75, "iteration": 20}
    state = {"version": 1, "validated": validated, "best": best, "times": TIMES, **parts}
    tensors = {"state_dict": {"w": torch.ones(3)}, "optimizer_states": [torch.zeros(2)]}
    return {"global_step": iteration, KEY: state, **tensors}


def scores(*values: float, spacing: int = 10) -> list[dict[str, Any]]:
    """Rows of metrics.csv, with a validation every `spacing` iterations."""
    return [
        {
            "step": spacing * n,
            "train/loss": 1 / n,
            "timing/examples_per_s": 100.0 * n,
            "val/accuracy": value,
            "val/loss": 2 / n,
        }
        for n, value in enumerate(values, start=1)
    ]
