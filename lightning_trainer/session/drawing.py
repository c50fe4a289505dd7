"""Curves over each other, of several sessions or of one, in a picture that can be printed."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lightning_trainer.session.metrics_csv import Curve

Array = NDArray[Any]

# Told apart also by the colour-blind: M. Okabe and K. Ito, "Color Universal Design", 2008, without
# yellow, which is lost on white paper. Seven colours and four styles: 28 different lines.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_FEW_POINTS = 30
_FEW_CURVES = 4


def draw(
    numbers: Mapping[str, Mapping[str, Curve]],
    smooth: float,
    output: Path,
    marks: Mapping[str, tuple[int, float]] | None = None,
) -> None:
    """Draws one diagram for each number, with a curve for each session.

    Args:
        numbers: Curves by the session's label, by the number's name.
        smooth: Weight of what came before in a moving mean, from 0 to below 1; above 0 the curve
            as it is stays visible, faintly.
        output: The file; its ending says of which kind it is.
        marks: Iteration and value of a point to mark, by the number's name.

    Raises:
        OSError: If the file can't be written.
        ValueError: If there is no such kind of file.
    """
    labels = list(dict.fromkeys(label for curves in numbers.values() for label in curves))
    n_columns = min(len(numbers), 2)
    n_rows = math.ceil(len(numbers) / n_columns)
    beside = len(labels) > _FEW_CURVES
    size = (5.5 * n_columns + 2.0 * beside, 3.8 * n_rows)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    lines: dict[str, Line2D] = {}
    for n, (name, curves) in enumerate(numbers.items(), start=1):
        axes = figure.add_subplot(n_rows, n_columns, n)
        axes.set(xlabel="iteration", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))
        axes.grid(alpha=0.3)
        for label, curve in curves.items():
            lines[label] = _draw_curve(axes, curve, smooth, labels.index(label))
        if marks and name in marks:
            _mark(axes, *marks[name])
    figure.legend(
        [lines[label] for label in labels],
        labels,
        loc="outside right upper" if beside else "outside upper center",
        ncols=1 if beside else len(labels),
        handlelength=3,
        frameon=False,
    )
    figure.savefig(output)


def _draw_curve(axes: Axes, curve: Curve, smooth: float, n: int) -> Line2D:
    """Draws the n-th session's curve; returns what the legend shows."""
    iterations, values = map(np.asarray, curve)
    colour, style = _COLOURS[n % len(_COLOURS)], _STYLES[n % len(_STYLES)]
    marker = _MARKERS[n % len(_MARKERS)] if len(values) <= _FEW_POINTS else ""
    if smooth:
        axes.plot(*thin(iterations, values), color=colour, alpha=0.15, linewidth=0.8)
        values = smoothen(values, smooth)
    points = thin(iterations, values)
    [line] = axes.plot(*points, color=colour, linestyle=style, marker=marker, markersize=3.5)
    return line


def _mark(axes: Axes, iteration: int, value: float) -> None:
    axes.axvline(iteration, color="grey", linestyle=":", linewidth=1)
    axes.plot(iteration, value, "*", color="black", markersize=11, zorder=3)
    axes.set_title(f"best: {value:.4g} at iteration {iteration:,}", fontsize=10)


def smoothen(values: Array, weight: float) -> Array:
    """The exponential moving mean, without the pull to zero that its first values would have.

    A value that is no number stays one and has no part in the others.
    """
    smooth, mean, sum_of_weights = np.empty(len(values)), 0.0, 0.0
    for i, value in enumerate(values):
        if math.isfinite(value):
            mean = weight * mean + (1 - weight) * value
            sum_of_weights = weight * sum_of_weights + (1 - weight)
        smooth[i] = mean / sum_of_weights if math.isfinite(value) else value
    return smooth


def thin(iterations: Array, values: Array, n_stretches: int = 1000) -> tuple[Array, Array]:
    """Lowest and highest value of each of so many stretches: about a picture's pixels.

    No peak is lost, and a file of a million rows is drawn as fast as a short one.
    """
    if len(values) <= 2 * n_stretches:
        return iterations, values
    bounds = np.linspace(0, len(values), n_stretches + 1).astype(int)
    kept: set[int] = set()
    for start, end in itertools.pairwise(bounds):
        stretch = values[start:end]
        kept |= {start + int(stretch.argmin()), start + int(stretch.argmax())}
    at = sorted(kept)
    return iterations[at], values[at]
