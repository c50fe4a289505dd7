"""Draws the curves of one or several sessions into one picture.

A run draws its curves.png in another process, because matplotlib takes about a second:

python -m lightning_trainer.session.drawing FOLDER val/accuracy max 0.981 300
"""

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.nice(19)  # before the slow imports, which would slow training down

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lightning_trainer.session.door import without_link
from lightning_trainer.session.metrics_csv import Curve, MetricsReader

Array = NDArray[Any]

# The colour-blind can tell these apart: M. Okabe and K. Ito, "Color Universal Design", 2008. Yellow
# is left out: it is invisible on paper. Seven colours and four styles make 28 different lines.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_FEW_POINTS = 30  # get markers
_FEW_CURVES = 4  # have their legend above the diagrams


def draw_curves(
    numbers: Mapping[str, Mapping[str, Curve]],
    smooth: float,
    output: Path,
    marks: Mapping[str, tuple[int, float]] | None = None,
    modes: Mapping[str | None, str | None] | None = None,
) -> None:
    """Draws one diagram for each number, with a curve for each session.

    Args:
        numbers: By the number's name and the session's label, its curve.
        smooth: Weight of earlier values in a moving mean, from 0 to below 1. Above 0 the curve
            itself is drawn faintly.
        output: The file; its suffix sets the format.
        marks: By the number's name, iteration and value of a point to mark.
        modes: By the number's name, "max" if a higher one is better, "min" if a lower one is.

    Raises:
        OSError: If the file can't be written.
        ValueError: If the format is not known.
    """
    labels = list(dict.fromkeys(label for curves in numbers.values() for label in curves))
    n_columns, n_rows = min(len(numbers), 2), math.ceil(len(numbers) / 2)
    beside = len(labels) > _FEW_CURVES
    size = (5.5 * n_columns + 2.0 * beside, 3.8 * n_rows)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    lines: dict[str, Line2D] = {}
    for n, (name, curves) in enumerate(numbers.items(), start=1):
        better = {"max": " (higher is better)", "min": " (lower is better)"}
        title = name + better.get((modes or {}).get(name) or "", "")
        axes = _label(figure.add_subplot(n_rows, n_columns, n), title)
        for label, curve in curves.items():
            lines[label] = _draw_curve(axes, curve, smooth, labels.index(label))
        if marks and name in marks:
            _mark(axes, *marks[name])
    place, n_legend = ("right upper", 1) if beside else ("upper center", len(labels))
    legend: dict[str, Any] = {"loc": f"outside {place}", "ncols": n_legend}
    figure.legend([*lines.values()], [*lines], handlelength=3, frameon=False, **legend)
    figure.savefig(output)


def _label(axes: Axes, name: str) -> Axes:
    axes.set(xlabel="iteration", ylabel=name)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))
    axes.grid(alpha=0.3)
    return axes


def _draw_curve(axes: Axes, curve: Curve, smooth: float, n: int) -> Line2D:
    """Draws the n-th session's curve; returns the line for the legend."""
    iterations, values = map(np.asarray, curve)
    colour, style = _COLOURS[n % len(_COLOURS)], _STYLES[n % len(_STYLES)]
    marker = _MARKERS[n % len(_MARKERS)] if len(values) <= _FEW_POINTS else ""
    if smooth:
        axes.plot(iterations, values, color=colour, alpha=0.15, linewidth=0.8)
        values = smoothen(values, smooth)
    [line] = axes.plot(
        iterations, values, color=colour, linestyle=style, marker=marker, markersize=3.5
    )
    return line


def _mark(axes: Axes, iteration: int, value: float) -> None:
    axes.axvline(iteration, color="grey", linestyle=":", linewidth=1)
    axes.plot(iteration, value, "*", color="black", markersize=11, zorder=3)
    axes.set_title(f"best: {value:.4g} at iteration {iteration:,}", fontsize=10)


def smoothen(values: Array, weight: float) -> Array:
    """The exponential moving mean, corrected for its start at zero; keeps NaN and infinity."""
    smooth, mean, sum_of_weights = values.astype(float), 0.0, 0.0
    for i, value in enumerate(values):
        if math.isfinite(value):
            mean = weight * mean + (1 - weight) * value
            sum_of_weights = weight * sum_of_weights + (1 - weight)
            smooth[i] = mean / sum_of_weights
    return smooth


def draw_session(folder: Path, score_key: str, mode: str, best: tuple[int, float] | None) -> None:
    """Draws a session's curves.png: loss and score of training and validation.

    `score_key` is e.g. "val/accuracy", `mode` "max", "min" or else if neither is known. `best` is
    iteration and value of the best score, to mark.
    """
    score = score_key.removeprefix("val/")
    keys = {name: [f"train/{name}", f"val/{name}"] for name in ("loss", score)}
    curves = MetricsReader(folder / "metrics.csv").curves([*keys["loss"], *keys[score]])
    numbers = {
        name: {key.removesuffix(f"/{name}"): curves[key] for key in of_modes if key in curves}
        for name, of_modes in keys.items()
    }
    if numbers := {name: of_modes for name, of_modes in numbers.items() if of_modes}:
        part = without_link(folder / "curves.tmp.png")
        draw_curves(numbers, 0.0, part, {score: best} if best else {}, {score: mode})
        part.replace(folder / "curves.png")


if __name__ == "__main__":
    _folder, _key, _mode, *_best = sys.argv[1:]
    draw_session(Path(_folder), _key, _mode, (int(_best[1]), float(_best[0])) if _best else None)
