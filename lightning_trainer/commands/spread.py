"""Says whether groups of sessions differ by more than their spread, by a named test."""

import math
from collections.abc import Sequence

from lightning_trainer.commands.columns import shown_number
from lightning_trainer.commands.groups import Group
from lightning_trainer.session.extras import install_command

_FEWEST = 3  # runs of a group: of two, the spread itself is hardly known
_LEVEL = 0.05


def describe_spread(groups: Sequence[Group]) -> list[str]:
    """A line for each group against the best one of its kind, with p and numbers of runs.

    Welch's t-test (B. L. Welch, Biometrika 34, 1947), two-sided. It assumes no equal variances.
    With more than two groups p is multiplied by the number of pairs among them (Bonferroni): which
    one is the best was picked by the same scores.
    """
    lines: list[str] = []
    known = [group for group in groups if group.by_quality]
    for kind in dict.fromkeys(group.kind for group in known):
        alike = [group for group in known if group.kind == kind]
        sign = -1 if alike[0].records[0].score_mode == "min" else 1
        alike.sort(key=lambda group: -sign * (group.mean or 0.0))
        tested = [group for group in alike if len(group.scores) >= _FEWEST]
        if len(alike) == 1:
            continue
        if tested:
            best, *others = tested
            n_pairs = math.comb(len(tested), 2)
            against = ". Against it, by Welch's t-test:" if others else ""
            lines.append(f"Best mean {kind[0]}: {_told(best)}{against}")
            lines += [f"    {_told(other)}: {_compare(best, other, n_pairs)}" for other in others]
            if n_pairs > 1:
                lines.append(
                    f"    (each p is times {n_pairs}, the number of pairs of {len(tested)} groups: "
                    "which one is the best was picked by the same scores)"
                )
        if few := [group for group in alike if group not in tested]:
            told = ", ".join(map(_told, few))
            lines.append(f"Too few runs to tell, of {_FEWEST} at least: {told}")
    return lines


def _told(group: Group) -> str:
    """E.g. "wide (0.9861 +- 0.0012, 3 runs)"."""
    n, deviation = len(group.scores), group.deviation
    spread = f" +- {shown_number(deviation)}" if deviation is not None else ""
    runs = "run" if n == 1 else "runs"
    return f"{group.label} ({shown_number(group.mean)}{spread}, {n} {runs})"


def _compare(best: Group, other: Group, n_pairs: int) -> str:
    a, b = best.scores, other.scores
    if len({*a}) == len({*b}) == 1:  # the test divides by the spread
        return "no run differs from another" if a[0] == b[0] else "differs; no group has a spread"
    try:
        from scipy.stats import ttest_ind  # takes a second
    except ImportError:
        return f"not tested: {install_command('stats')}"
    p = min(float(ttest_ind(a, b, equal_var=False).pvalue) * n_pairs, 1.0)
    told = "differs by more than the spread" if p < _LEVEL else "no more than the spread"
    return f"p = {p:.2g} (n = {len(a)} and {len(b)}): {told}"
