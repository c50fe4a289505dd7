"""What of a curve is drawn: where its points lie, and fewer of them where there are many."""

import math
from array import array
from collections.abc import Iterable, Sequence

_WIDE = 30  # times the lowest value
_MOST_HELD = 20_000  # points of a curve in memory


def is_wide(curves: Iterable[Sequence[float]]) -> bool:
    """Whether a logarithmic axis shows more of these values."""
    values = [value for curve in curves for value in curve if math.isfinite(value)]
    return bool(values) and min(values) > 0 and max(values) > _WIDE * min(values)


class ShownCurve:
    """Collects the points of a curve.

    Of very many it keeps from each stretch the lowest and the highest, as they were logged.

    Args:
        is_mean: Each value is a mean over the iterations since the one before: its point lies in
            the middle of these.
    """

    def __init__(self, is_mean: bool) -> None:
        self.n_points = self.n_strange = 0  # all; those that are NaN or infinite
        self._is_mean, self._before = is_mean, 0
        self._x, self._y = array("d"), array("d")

    def add(self, iteration: int, value: float) -> None:
        begin = min(self._before, iteration) if self._is_mean else iteration
        self._x.append((begin + iteration) / 2)
        self._y.append(value)
        self._before = iteration
        self.n_points += 1
        self.n_strange += not math.isfinite(value)
        if len(self._x) >= _MOST_HELD:
            self._thin(_MOST_HELD // 2)

    def points(self, most: int) -> tuple[Sequence[float], Sequence[float]]:
        """Iterations, sorted, and values: at most so many."""
        if len(self._x) > most:
            self._thin(most)
        order = sorted(range(len(self._x)), key=self._x.__getitem__)
        return [self._x[i] for i in order], [self._y[i] for i in order]

    def _thin(self, most: int) -> None:
        n, y = len(self._x), self._y
        size = math.ceil(2 * n / max(most - 2, 1))
        kept = {0, n - 1}
        for start in range(0, n, size):
            stretch = range(start, min(start + size, n))
            finite = [i for i in stretch if math.isfinite(y[i])] or [start]
            kept |= {min(finite, key=y.__getitem__), max(finite, key=y.__getitem__)}
        chosen = sorted(kept)
        self._x = array("d", [self._x[i] for i in chosen])
        self._y = array("d", [y[i] for i in chosen])
