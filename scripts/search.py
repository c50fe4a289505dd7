"""Searches settings with Optuna: a session for each trial, also for one that fails.

pip install -e ".[search]"
python scripts/search.py --trials 20 --config configs/digits.yaml
python cli.py sessions experiments/search --sort -best

What follows `--trials N` goes to `cli.py fit`. Typed again, the search goes on: its study is in
experiments/search/study.db.
"""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

import optuna

FOLDER = "experiments/search"


def options(trial: optuna.Trial) -> dict[str, object]:
    """What is searched: the keys of the YAML."""
    return {
        "model.learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True),
        "model.width": trial.suggest_categorical("width", [8, 16, 32]),
    }


def run(trial: optuna.Trial, arguments: list[str], folder: str) -> float:
    """Trains one session; returns its best score, negative if the lowest is the best one.

    Raises:
        KeyboardInterrupt: If it was stopped by Ctrl-C, which ends the search.
        RuntimeError: If it failed, or has no score; the search goes on.
    """
    tag = f"trial{trial.number}"
    chosen = [f"--{name}={value}" for name, value in options(trial).items()]
    own = [f"--tag={tag}", f"--output_path={folder}"]
    command = [sys.executable, "cli.py", "fit", *arguments, *chosen, *own]
    code = subprocess.run(command).returncode
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    listing = [sys.executable, "cli.py", "sessions", folder, "--format=json"]
    rows = json.loads(subprocess.run(listing, check=True, capture_output=True).stdout)
    found = [row for row in rows if row["tag"] == tag and row["best"] is not None]
    if code or not found:
        raise RuntimeError(f"{tag} ended with exit code {code}")
    score, mode = found[-1]["best"], found[-1]["mode"]
    trial.set_user_attr("score", score)
    return float(-score if mode == "min" else score)


def main() -> None:
    """Runs the search."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--output_path", default=FOLDER)
    own, arguments = parser.parse_known_args()
    Path(own.output_path).mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{own.output_path}/study.db",
        study_name="search",
        direction="maximize",
        load_if_exists=True,
    )
    # Ctrl-C is for the run, which saves: Python would kill it after a quarter of a second.
    signal.signal(signal.SIGINT, lambda *_: None)
    study.optimize(
        lambda trial: run(trial, arguments, own.output_path),
        n_trials=own.trials,
        catch=(RuntimeError,),
    )
    best = study.best_trial
    print(f"Best: {best.user_attrs['score']:.4f} by trial{best.number}, {best.params}")


if __name__ == "__main__":
    main()
