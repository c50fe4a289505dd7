"""Session folders made by hand."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

START = "Session: somewhere\nParameters: 9 (trainable: 9)\n"


def make_session(
    folder: Path,
    tag: str = "run",
    *,
    second: int = 0,
    rows: list[Mapping[str, Any]] | None = None,
    log: str = START,
    checkpoint: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    max_steps: int = 100,
) -> Path:
    """A folder as a run of `max_steps` iterations leaves it."""
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
    path.joinpath("log.txt").write_text(log)
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


def make_checkpoint(iteration: int, *, validated: bool = True, **parts: Any) -> dict[str, Any]:
    """What a checkpoint holds besides much else."""
    callbacks = {
        "ValidationSchedule": {"validated": validated},
        "ReportEvaluation": {"best_score": 0.75, "best_iteration": 20},
        "PrintProgress": {"times": {"elapsed_s": 1800.0, "examples": 5000, "iterations_s": 10.0}},
    }
    tensors = {"state_dict": {"w": torch.ones(3)}, "optimizer_states": [torch.zeros(2)]}
    return {"global_step": iteration, "callbacks": callbacks, **tensors, **parts}


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
