"""Says whether groups of sessions differ by more than their spread, by a named test."""

import math
from collections.abc import Sequence

from lightning_trainer.commands.columns import score_of, shown_number
from lightning_trainer.commands.groups import Group

_FEWEST = 3  # runs of a group: of two, the spread itself is hardly known
_LEVEL = 0.05


def describe_spread(groups: Sequence[Group]) -> list[str]:
    """A line for each group against the best one of the same score, with p and numbers of runs.

    Welch's t-test (B. L. Welch, Biometrika 34, 1947), two-sided. It assumes no equal variances.
    With more than two groups p is multiplied by the number of pairs among them (Bonferroni): which
    one is the best was picked by the same scores.
    """
    lines: list[str] = []
    known = [group for group in groups if group.by_quality]
    for score in dict.fromkeys(score_of(group.records[0]) for group in known):
        alike = [group for group in known if score_of(group.records[0]) == score]
        sign = -1 if alike[0].records[0].score_mode == "min" else 1
        ranked = sorted(alike, key=lambda group: -sign * (group.mean or 0.0))
        n_pairs = math.comb(len(ranked), 2)
        if not n_pairs:
            continue
        best, *others = ranked
        lines.append(f"Best mean {score}: {_told(best)}. Against it, by Welch's t-test:")
        lines += [f"    {_told(other)}: {_compare(best, other, n_pairs)}" for other in others]
        if n_pairs > 1:
            lines.append(
                f"    (each p is times {n_pairs}, the number of pairs of {len(ranked)} groups: "
                "which one is the best was picked by the same scores)"
            )
    return lines


def _told(group: Group) -> str:
    """E.g. "wide (0.9861 +- 0.0012, 3 runs)"."""
    n, deviation = len(group.scores), group.deviation
    spread = f" +- {shown_number(deviation)}" if deviation is not None else ""
    runs = "run" if n == 1 else "runs"
    return f"{group.label} ({shown_number(group.mean)}{spread}, {n} {runs})"


def _compare(best: Group, other: Group, n_pairs: int) -> str:
    a, b = best.scores, other.scores
    if min(len(a), len(b)) < _FEWEST:
        return f"too few runs to tell ({len(a)} and {len(b)}, of {_FEWEST} at least)"
    if len({*a}) == len({*b}) == 1:  # the test divides by the spread
        return "no run differs from another" if a[0] == b[0] else "differs; no group has a spread"
    try:
        from scipy.stats import ttest_ind  # takes a second
    except ImportError:
        return 'not tested: `pip install "lightning_trainer[stats]"`'
    p = min(float(ttest_ind(a, b, equal_var=False).pvalue) * n_pairs, 1.0)
    told = "differs by more than the spread" if p < _LEVEL else "no more than the spread"
    return f"p = {p:.2g} (n = {len(a)} and {len(b)}): {told}"
