"""Whatever its kind, a run that is stopped anywhere goes on bitwise; benchmarks/stops.py does more.

A case that fails is run again by: python benchmarks/stops.py --case JSON
"""

import random

import pytest
from stops import Case, Stop, check_case, draw_case


def faults(case: Case, folder) -> list[str]:
    told = [*check_case(case, folder)]
    assert any(each != "not reached" for _, each in told)
    return [f"{stop}: {each}" for stop, each in told if each not in ("equal", "not reached")]


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "counting", "precision"),
    [
        ("teacher in a hook", "by fractions", "16-mixed"),
        ("two optimisers", "epochs", "32-true"),
        ("AverageWeights", "every 2 epochs", "bf16-mixed"),
    ],
)
def test_a_run_that_is_stopped_twice_goes_on_bitwise(tmp_path, kind, counting, precision):
    case = Case(kind, counting, precision, 1, True, (Stop("batch", 6, again=3),))
    assert faults(case, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_stopped_at_random_places_it_goes_on_bitwise(tmp_path, seed):
    case = draw_case(random.Random(seed), 3, most_processes=1, compiled=False)
    assert faults(case, tmp_path) == [], str(case)
