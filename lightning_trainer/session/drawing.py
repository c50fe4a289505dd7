"""Draws the curves of one or several sessions into one picture.

A run draws its curves.png in another process, because matplotlib takes about a second:

python -m lightning_trainer.session.drawing FOLDER val/accuracy max 0.981 300
"""

import math
import os
import sys
from collections.abc import Mapping, Sequence
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
from lightning_trainer.session.shown_curve import is_wide

Array = NDArray[Any]

# The colour-blind can tell these apart: M. Okabe and K. Ito, "Color Universal Design", 2008. Yellow
# is left out: it is invisible on paper. Seven colours and four styles make 28 different lines.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_FEW_POINTS = 30  # get markers
_FEW_CURVES = 4  # have their legend above the diagrams
_MOST_IN_A_ROW = 3  # diagrams

Placed = tuple[Sequence[float], list[float]]  # iterations, maybe between two, and values
Spread = tuple[Sequence[float], Sequence[float]]  # the lower and the upper edge of a band


def draw_curves(
    numbers: Mapping[str, Mapping[str, Curve]],
    smooth: float,
    output: Path,
    marks: Mapping[str, tuple[int, float]] | None = None,
    modes: Mapping[str | None, str | None] | None = None,
    spreads: Mapping[str, Mapping[str, Spread]] | None = None,
    title: str = "",
) -> None:
    """Draws one diagram for each number, with a curve for each session, by name and label.

    The training's numbers are means over the iterations since the one before, and are drawn in the
    middle of these. `smooth` is the weight of earlier values in a moving mean. `marks` has
    iteration and value of a point to mark, `modes` "max" if a higher number is better and "min" if
    a lower one is, `spreads` the edges of a band around a curve.

    Raises:
        OSError: If the file can't be written.
        ValueError: If the format is not known.
    """
    labels = list(dict.fromkeys(label for curves in numbers.values() for label in curves))
    n_columns = min(len(numbers), _MOST_IN_A_ROW)
    n_rows = math.ceil(len(numbers) / n_columns)
    beside = len(labels) > _FEW_CURVES or len("".join(labels)) > _LONGEST_TITLE
    size = (max(4.6 * n_columns + 2.4 * beside, 5.5), 3.8 * n_rows)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    lines: dict[str, Line2D] = {}
    for n, (name, curves) in enumerate(numbers.items(), start=1):
        mode = (modes or {}).get(name)
        axes = figure.add_subplot(n_rows, n_columns, n, sharex=figure.axes[0] if n > 1 else None)
        _label(axes, name + _BETTER.get(mode or "", ""))
        if mode != "max" and is_wide(values for _, values in curves.values()):
            axes.set_yscale("log")
        lines |= _draw_number(axes, name, curves, labels, smooth, (spreads or {}).get(name) or {})
        if marks and name in marks:
            _mark(axes, *marks[name])
    _add_legend(figure, lines, _the_same(numbers), beside)
    figure.suptitle(_shortened(title), fontsize=10)
    figure.savefig(output)


_BETTER = {"max": " (higher is better)", "min": " (lower is better)"}


def _add_legend(
    figure: Figure, lines: Mapping[str, Line2D], same: Mapping[str, str], beside: bool
) -> None:
    names = [f"{label} (same as {same[label]})" if label in same else label for label in lines]
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": len(names)}
    if beside:
        place = {"loc": "outside right upper"}
    figure.legend([*lines.values()], names, handlelength=3, frameon=False, **place)


def _label(axes: Axes, name: str) -> Axes:
    axes.set(xlabel="iteration", ylabel=name)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))
    axes.grid(alpha=0.3)
    return axes


def _placed(curve: Curve, name: str, label: str) -> Placed:
    """The curve with a training's means in the middle of the iterations that they are of."""
    iterations, values = curve
    if not (name.startswith("train/") or label == "train"):
        return curve
    return [(a + b) / 2 for a, b in zip([0, *iterations], iterations, strict=False)], values


def _draw_curve(axes: Axes, curve: Placed, smooth: float, n: int) -> Line2D:
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


def _draw_number(
    axes: Axes,
    name: str,
    curves: Mapping[str, Curve],
    labels: Sequence[str],
    smooth: float,
    spreads: Mapping[str, Spread],
) -> dict[str, Line2D]:
    placed = {label: _placed(curve, name, label) for label, curve in curves.items()}
    drawn = {
        label: _draw_curve(axes, curve, smooth, labels.index(label))
        for label, curve in placed.items()
    }
    for label, spread in spreads.items():
        _draw_spread(axes, placed[label], spread, smooth, drawn[label])
    _widen_the_same(drawn, curves)
    return drawn


def _draw_spread(axes: Axes, curve: Placed, spread: Spread, smooth: float, line: Line2D) -> None:
    """A band, or a bar where there is one point."""
    edges = [smoothen(np.asarray(edge), smooth) for edge in spread]
    colour = line.get_color()
    if len(edges[0]) == 1:
        axes.vlines(curve[0], edges[0], edges[1], color=colour, linewidth=4, alpha=0.3)
    axes.fill_between(curve[0], edges[0], edges[1], color=colour, alpha=0.15, linewidth=0)


def _widen_the_same(lines: Mapping[str, Line2D], curves: Mapping[str, Curve]) -> None:
    """Makes curves that coincide as wide as it takes to see each of them."""
    of_curve: dict[str, list[Line2D]] = {}
    for label, line in lines.items():
        of_curve.setdefault(repr(curves[label]), []).append(line)
    for same in of_curve.values():
        for n_above, line in enumerate(reversed(same)):
            line.set_linewidth(1.5 + 2.5 * n_above)
            line.set_markersize(3.5 + 2.5 * n_above)


def _the_same(numbers: Mapping[str, Mapping[str, Curve]]) -> dict[str, str]:
    """By the label of a session, the first one with the same curves of all numbers."""
    labels = dict.fromkeys(label for curves in numbers.values() for label in curves)
    first: dict[str, str] = {}
    found: dict[str, str] = {}
    for label in labels:
        text = repr([curves.get(label) for curves in numbers.values()])
        if first.setdefault(text, label) != label:
            found[label] = first[text]
    return found


def _mark(axes: Axes, iteration: int, value: float) -> None:
    axes.axvline(iteration, color="grey", linestyle=":", linewidth=1)
    axes.plot(iteration, value, "*", color="black", markersize=11, zorder=3)
    axes.set_title(f"best: {value:.4g} at iteration {iteration:,}", fontsize=10)


def _shortened(title: str) -> str:
    return title if len(title) <= _LONGEST_TITLE else f"..{title[2 - _LONGEST_TITLE :]}"


_LONGEST_TITLE = 90  # characters


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
        marks = {score: best} if best else {}
        modes: dict[str | None, str | None] = {score: mode, "loss": "min"}
        draw_curves(numbers, 0.0, part, marks, modes, title=folder.name)
        part.replace(folder / "curves.png")


if __name__ == "__main__":
    _folder, _key, _mode, *_best = sys.argv[1:]
    draw_session(Path(_folder), _key, _mode, (int(_best[1]), float(_best[0])) if _best else None)
