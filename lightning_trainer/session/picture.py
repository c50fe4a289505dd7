"""Draws curves.png of a session, in a process of its own: matplotlib takes about a second.

python -m lightning_trainer.session.picture FOLDER val/accuracy 0.981 300
"""

import os
import sys
from pathlib import Path

from lightning_trainer.session.drawing import draw
from lightning_trainer.session.metrics_csv import Curves


def draw_session(folder: Path, score_key: str, best: tuple[int, float] | None) -> None:
    """Draws loss and score of training and validation over the iterations.

    Args:
        folder: Of the session.
        score_key: Name of the score, e.g. "val/accuracy".
        best: Iteration and value of the best score, which is marked.

    Raises:
        OSError: If the file can't be written.
    """
    score = score_key.removeprefix("val/")
    names = dict.fromkeys(["loss", score])
    curves = Curves(folder / "metrics.csv").read(
        [f"{mode}/{name}" for name in names for mode in ("train", "val")]
    )
    numbers = {
        name: {
            mode: curves[key] for mode in ("train", "val") if (key := f"{mode}/{name}") in curves
        }
        for name in names
    }
    numbers = {name: of_modes for name, of_modes in numbers.items() if of_modes}
    if numbers:
        part = folder / "curves.tmp.png"
        draw(numbers, 0.0, part, {score: best} if best else {})
        part.replace(folder / "curves.png")


def main(folder: str, score_key: str, *best: str) -> None:
    """Draws as the lowest of all processes, so that training goes on as before."""
    os.nice(19)
    draw_session(Path(folder), score_key, (int(best[1]), float(best[0])) if best else None)


if __name__ == "__main__":
    main(*sys.argv[1:])
