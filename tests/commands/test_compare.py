"""`compare`: what differs between sessions side by side, and their curves in one picture."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from folders import make_checkpoint, make_session, scores
from matplotlib.image import imread

from lightning_trainer.commands.compare import read_curves
from lightning_trainer.session.drawing import draw_curves, smoothen
from lightning_trainer.session.record import Record

SIDE_BY_SIDE = """\
                         base            fast
state                finished     interrupted
iterations            100/100          30/100
score          accuracy (max)  accuracy (max)
best                   0.7500          0.7000
at                         20              30
learning_rate           0.001             0.1
hours                 0:30:00               -
examples/s              500.0           300.0
commit                0123456         0123456
"""


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch) -> Path:
    """A folder of three sessions, two of which have logged numbers, seen from beside it."""
    folder = tmp_path / "experiments"
    make_session(folder, "base", checkpoint=make_checkpoint(100), rows=scores(0.5, 0.6))
    rows = scores(0.4, 0.6, 0.7)
    make_session(folder, "fast", second=1, rows=rows, settings={"learning_rate": 0.1})
    make_session(folder, "empty", second=2)
    monkeypatch.chdir(tmp_path)
    return folder


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_two_tags_side_by_side_and_their_curves_in_a_picture(run, experiments):
    assert run("compare", "base", "fast") == (0, f"{SIDE_BY_SIDE}Curves: compare.png\n", "")
    assert is_picture(Path("compare.png"))


@pytest.mark.parametrize(
    "names",
    [
        ["experiments/session_node1_2024_02_29_12_00_00_base", "fast"],
        ["12_00_00", "12_00_01", "base"],  # parts of names; each session once
    ],
)
def test_a_session_is_named_by_its_folder_or_tag_or_a_part_of_its_name(run, experiments, names):
    assert run("compare", *names)[1].startswith(SIDE_BY_SIDE)


def test_a_folder_stands_for_all_its_sessions_and_a_tag_for_all_that_have_it(run, experiments):
    make_session(experiments, "base", second=7, rows=scores(0.3))
    out = run("compare", "base")[1]
    named = ["2024_02_29_12_00_00_base", "2024_02_29_12_00_07_base"]
    assert out.splitlines()[0].split() == named
    out = run("compare", experiments)[1]
    assert {*out.splitlines()[0].split()} == {*named, "fast", "empty"}


def test_sessions_of_one_name_are_told_apart_by_their_folders(run, tmp_path):
    first, second = (make_session(tmp_path / side, rows=scores(0.5)) for side in "ab")
    out = run("compare", first, second, "--output", tmp_path / "c.png")[1]
    labels = out.splitlines()[0].split()
    assert labels == ["a/2024_02_29_12_00_00_run", "b/2024_02_29_12_00_00_run"]


def test_a_renamed_session_is_called_by_its_new_name(run, experiments):
    next(experiments.glob("*_fast")).rename(experiments / "the_good_one")
    out = run("compare", "base", "fast", "the_good")[1]
    assert out.splitlines()[0].split() == ["base", "the_good_one"]


def test_neither_torch_nor_lightning_is_imported(experiments):
    code = (
        "import sys; from lightning_trainer.main import main\n"
        f"try: main(['compare', {str(experiments)!r}])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'lightning', 'matplotlib.pyplot'} & {*sys.modules}\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_sessions_of_different_scores_are_told_apart(run, experiments):
    rows = [{"step": 10, "val/mae": 3.0}, {"step": 20, "val/mae": 2.0}]
    score = {"name": "val/mae", "mode": "min", "best": 2.0, "iteration": 20}
    make_session(experiments, "error", second=3, rows=rows, run={"score": score})
    code, out, err = run("compare", "base", "error")
    assert code == 0
    assert "  accuracy (max)  mae (min)\n" in out
    told = "Different scores, not to be compared: accuracy (max) of base; mae (min) of error\n"
    assert err.startswith(told)
    assert "scores" not in run("compare", "base", "fast")[2]


def test_a_number_that_only_some_have_is_drawn_and_said(run, experiments):
    code, _, err = run("compare", experiments, "--number", "val/loss", "--output", "loss.png")
    assert (code, err) == (0, "No val/loss in empty\n")
    assert is_picture(Path("loss.png"))


def test_loss_and_score_are_drawn_unless_others_are_named(experiments):
    records = [Record.read(path) for path in sorted(experiments.iterdir())]
    curves = read_curves(records, None)
    assert curves["train/loss"]["base"] == ([10, 20], [1.0, 0.5])
    assert curves["val/accuracy"]["fast"] == ([10, 20, 30], [0.4, 0.6, 0.7])
    assert curves.keys() == {"train/loss", "val/accuracy"}
    assert read_curves(records, ["val/loss"]).keys() == {"val/loss"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: SESSION"),
        (["bsae"], "'bsae' is no session, nor a tag or a part of a session's name in experiments. "
         "Did you mean `base`?"),
        (["base", "--folder", "nowhere"], "'nowhere' can't be read (No such file or directory)"),
        (["."], None),
        (["base", "--number", "val/los"], "no session has logged the number 'val/los'. Did you "
         "mean `val/loss`?"),
        (["empty"], "no session has logged the number 'train/loss', nor any other"),
        (["base", "--smooth", "1"], "argument --smooth: '1' is no number from 0 to below 1"),
        (["base", "--smooth", "much"], "argument --smooth: 'much' is no number from 0 to below 1"),
        (["base", "--output", "a.xyz"], "`--output` is 'a.xyz', which can't be written: Format "
         "'xyz' is not supported"),
        (["base", "--output", "no/a.png"], "`--output` is 'no/a.png', which can't be written: No "
         "such file or directory"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message(run, experiments, args, message):
    if message is None:
        Path("inside").mkdir()
        args, message = ["inside"], "'inside' is no session folder, and there is none in it"
    code, _, err = run("compare", *args)
    assert code == 2
    assert err.startswith(f"error: {message}")
    assert err.splitlines()[1:] == ["(more: python cli.py compare --help)"]


# The numbers --------------------------------------------------------------------------------------


def test_smoothing_starts_at_the_first_value_and_leaves_gaps_alone():
    assert smoothen(np.array([2.0, 2.0, 2.0]), 0.9) == pytest.approx([2, 2, 2])
    # By hand: (0.5 * 0.5 * 1 + 0.5 * 4) / 0.75.
    values = smoothen(np.array([1.0, np.nan, 4.0]), 0.5)
    assert values[[0, 2]] == pytest.approx([1, 3])
    assert np.isnan(values[1])


def test_a_single_peak_among_many_points_is_in_the_picture(tmp_path):
    values = np.random.default_rng(0).normal(size=100_000)
    values[33_333] = 90.0  # else the curve would have less than a tenth of the height
    draw_curves({"a": {"b": (list(range(100_000)), values.tolist())}}, 0, tmp_path / "a.png")
    blue = np.abs(imread(tmp_path / "a.png")[..., :3] - np.array([0, 0x72, 0xB2]) / 255) < 0.01
    rows = np.flatnonzero(blue.all(-1)[100:].any(1))  # below the legend
    assert np.ptp(rows) > 350


def test_thirty_sessions_three_numbers_and_single_points_can_be_drawn(tmp_path):
    curves = {f"session {n}": ([1, 2], [0.0, n]) for n in range(30)}
    single = {"session 3": ([7], [1.0])}
    numbers = {"train/loss": curves, "val/$accuracy_": single, "c": single}
    draw_curves(numbers, 0.5, tmp_path / "c.png")
    assert is_picture(tmp_path / "c.png")
