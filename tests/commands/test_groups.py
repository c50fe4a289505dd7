"""`--over SETTING`: runs that differ only in it are one row and one curve, and are compared."""

import csv
import io
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from folders import make_session, scores

from lightning_trainer.commands.groups import group_sessions, mean_curves
from lightning_trainer.commands.spread import describe_spread
from lightning_trainer.session.drawing import draw_curves
from lightning_trainer.session.record import Record

TABLE = """\
group  runs    score             mean   std     best    worst   learning_rate    hours
wide   3       accuracy (max)  0.9000  0.0100  0.9100  0.8900            0.1  1:30:00
base   3 of 4  accuracy (max)  0.8000  0.0200  0.8200  0.7800          0.001  1:30:00
"""


def make_seeds(folder: Path, tag: str, bests: list[float | None], mode="max", **settings) -> None:
    """A session for each seed, with its best score; without one it was stopped before."""
    for seed, best in enumerate(bests):
        score = {"name": "val/accuracy", "mode": mode, "best": best, "iteration": 20}
        state = "interrupted" if best is None else "finished"
        path = make_session(
            folder,
            f"{tag}_s{seed}",
            second=len([*folder.glob("*")]),
            rows=scores(0.1, 0.2 + seed / 10),
            run={"score": score if best is not None else None, "state": state},
            settings={**settings, "score_mode": mode},
        )
        config = yaml.safe_load((path / "config.yaml").read_text())
        config |= {"seed_everything": seed, "output_path": f"somewhere/{seed}"}
        (path / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def experiments(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "experiments"
    make_seeds(folder, "wide", [0.90, 0.89, 0.91], learning_rate=0.1)
    make_seeds(folder, "base", [0.80, 0.82, 0.78, None])
    monkeypatch.chdir(tmp_path)
    return folder


def records(folder: Path) -> list[Record]:
    return [Record.read(path) for path in sorted(folder.iterdir())]


def test_seeds_are_one_row_with_mean_spread_best_and_worst(run, experiments):
    code, out, err = run("sessions", "--over", "seed_everything")
    assert (code, err) == (0, "")
    table, told = out.split("\n\n")
    assert [line.split() for line in table.splitlines()] == [
        line.split() for line in TABLE.splitlines()
    ]
    # By hand: t = 0.1 / sqrt(0.0001 / 3 + 0.0004 / 3) = 7.75, 2.94 degrees of freedom.
    assert told == (
        "Best mean accuracy (max): wide (0.9000 +- 0.0100, 3 runs). "
        "Against it, by Welch's t-test:\n"
        "    base (0.8000 +- 0.0200, 3 runs): p = 0.0048 (n = 3 and 3): differs by more than the "
        "spread\n"
    )


def test_csv_and_json_have_the_numbers_in_full_and_the_sessions(run, experiments):
    wide, base = json.loads(run("sessions", "--over", "seed_everything", "--format", "json")[1])
    assert wide["mean"] == pytest.approx(0.9)
    assert (base["runs"], base["counted"], len(base["sessions"])) == (4, 3, 4)
    text = run("sessions", "--over=seed_everything", "--format=csv")[1]
    assert [row["group"] for row in csv.DictReader(io.StringIO(text))] == ["wide", "base"]


def test_a_setting_is_named_by_its_last_word_and_several_can_be_left_out(run, experiments):
    out = run("sessions", "--over", "seed_everything", "--over", "learning_rate")[1]
    assert out.splitlines()[1].split()[:4] == ["wide", "6", "of", "7"]
    groups, options = group_sessions(records(experiments), ["seed_everything"])
    assert options == ["model.learning_rate"]
    assert [len(group.records) for group in groups] == [3, 4]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("seed", "no session has such a setting. Did you mean `seed_everything`?"),
        ("fold", "no session has such a setting"),
        ("class_path", "several have it. Did you mean `model.class_path` or `data.class_path`?"),
    ],
)
def test_a_setting_that_is_not_there_is_one_message(run, experiments, name, message):
    path = next(experiments.iterdir()) / "config.yaml"
    path.write_text(path.read_text() + "data: {class_path: a.B, init_args: {}}\n")
    code, _, err = run("sessions", "--over", name)
    assert code == 2
    assert err.splitlines()[0] == f"error: `--over` is {name!r}: {message}"


def test_groups_of_one_tag_are_named_by_what_differs(tmp_path):
    for second, rate in enumerate((0.1, 0.1, 0.2)):
        make_session(tmp_path, "run", second=second, run={}, settings={"learning_rate": rate})
    groups, _ = group_sessions(records(tmp_path), [])
    assert [group.label for group in groups] == ["run learning_rate=0.1", "run learning_rate=0.2"]


def test_for_an_error_the_lowest_is_the_best(tmp_path):
    make_seeds(tmp_path, "a", [3.0, 1.0, 2.0], mode="min")
    [group], _ = group_sessions(records(tmp_path), ["seed_everything"])
    assert group.by_quality == [1.0, 2.0, 3.0]


def told(folder: Path) -> list[str]:
    return describe_spread(group_sessions(records(folder), ["seed_everything"])[0])


def test_too_few_runs_are_said_to_be_so(tmp_path):
    make_seeds(tmp_path, "a", [0.9, 0.8])
    make_seeds(tmp_path, "b", [0.5, 0.6, 0.7], width=2)
    assert told(tmp_path) == [
        "Best mean accuracy (max): b (0.6000 +- 0.1000, 3 runs)",
        "Too few runs to tell, of 3 at least: a (0.8500 +- 0.0707, 2 runs)",
    ]


def test_one_seed_twice_counts_once(tmp_path):
    make_seeds(tmp_path, "a", [0.9, 0.8, 0.7])
    first = sorted(tmp_path.iterdir())[0]
    shutil.copytree(first, tmp_path / first.name.replace("12_00_00", "12_00_09"))
    [group], _ = group_sessions(records(tmp_path), ["seed_everything"])
    assert (len(group.records), group.scores) == (4, [0.9, 0.8, 0.7])


def test_with_three_groups_each_p_is_times_the_number_of_pairs(tmp_path):
    make_seeds(tmp_path, "b", [0.80, 0.82, 0.78])
    make_seeds(tmp_path, "a", [0.90, 0.89, 0.91], width=2)
    make_seeds(tmp_path, "c", [0.89, 0.90, 0.92], width=3)
    first, _, _, last = told(tmp_path)
    assert first.startswith("Best mean accuracy (max): c ")
    assert "each p is times 3, the number of pairs of 3 groups" in last
    assert "p = 1 (n = 3 and 3): no more than the spread" in "\n".join(told(tmp_path))


def test_groups_of_other_data_are_not_compared(tmp_path):
    make_seeds(tmp_path, "a", [0.9, 0.8, 0.7])
    make_seeds(tmp_path, "b", [0.5, 0.6, 0.7])
    for path in tmp_path.glob("*_b_*/config.yaml"):
        path.write_text(path.read_text().replace("projects.a.A", "projects.b.B"))
    assert told(tmp_path) == []


def test_groups_of_other_scores_are_not_compared(tmp_path):
    make_seeds(tmp_path, "a", [0.9, 0.8, 0.7])
    make_seeds(tmp_path, "b", [3.0, 2.0, 1.0], mode="min")
    assert told(tmp_path) == []


def test_scores_without_a_spread_are_not_tested(tmp_path):
    make_seeds(tmp_path, "a", [0.9] * 3)
    make_seeds(tmp_path, "b", [0.8] * 3, width=2)
    make_seeds(tmp_path, "c", [0.9] * 3, width=3)
    assert [line.rpartition(": ")[2] for line in told(tmp_path)[1:3]] == [
        "no run differs from another",
        "differs; no group has a spread",
    ]


def test_without_scipy_the_line_says_what_to_install(experiments, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    assert told(experiments)[1].endswith(f'not tested: `pip install -e "{ROOT}[stats]"`')


def test_compare_has_one_column_and_one_curve_with_a_band_for_the_seeds(run, experiments):
    code, out, err = run("compare", "experiments", "--over", "seed_everything")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["wide", "base"]
    assert "differs by more than the spread\nCurves: compare.png\n" in out
    assert Path("compare.png").stat().st_size > 10_000


def test_a_mean_is_over_the_iterations_that_all_have():
    curves = {
        "n": {"a": ([1, 2, 3], [1.0, 2.0, 3.0]), "b": ([1, 2], [3.0, 2.0]), "c": ([9], [7.0])}
    }
    means, spreads = mean_curves(curves, {"ab": ["a", "b"], "c": ["c"]})
    assert means == {"n": {"ab": ([1, 2], [2.0, 2.0]), "c": ([9], [7.0])}}
    low, high = spreads["n"]["ab"]
    assert (low, high) == (pytest.approx([2 - 2**0.5, 2]), pytest.approx([2 + 2**0.5, 2]))
    assert spreads["n"].keys() == {"ab"}
    apart, _ = mean_curves({"n": {"a": ([1], [1.0]), "b": ([2], [3.0])}}, {"ab": ["a", "b"]})
    assert apart == {"n": {"ab": ([1, 2], [1.0, 3.0])}}


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_a_run_that_has_diverged_breaks_the_mean_off_and_not_the_command(lost, tmp_path):
    curves = {"n": {"a": ([1, 2], [1.0, math.inf]), "b": ([1, 2], [3.0, lost])}}
    means, spreads = mean_curves(curves, {"ab": ["a", "b"]})
    steps, middle = means["n"]["ab"]
    assert (steps, middle[0]) == ([1, 2], 2.0) and not math.isfinite(middle[1])
    low, high = spreads["n"]["ab"]
    assert low[0] < 2 < high[0] and math.isnan(low[1]) and math.isnan(high[1])
    draw_curves(means, 0.5, tmp_path / "a.png", spreads=spreads)


def test_a_band_is_drawn_around_the_mean(tmp_path):
    curve, band = ([1, 2], [1.0, 2.0]), ([0.5, 1.5], [1.5, 2.5])
    sizes = []
    for spreads in (None, {"n": {"a": band}}):
        draw_curves({"n": {"a": curve}}, 0.5, tmp_path / "a.png", spreads=spreads)
        sizes.append((tmp_path / "a.png").read_bytes())
    assert sizes[0] != sizes[1]
