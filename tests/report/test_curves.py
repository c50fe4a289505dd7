"""curves.png of a session."""

from types import SimpleNamespace
from typing import ClassVar

import pytest
from matplotlib.image import imread

from lightning_trainer.report import curves
from lightning_trainer.report.curves import DrawCurves
from lightning_trainer.run.state import Best, RunState
from lightning_trainer.session import drawing
from lightning_trainer.session.drawing import draw_session
from lightning_trainer.session.folder import Session

DRAW = DrawCurves._draw  # before conftest takes it away


@pytest.fixture
def drawn(monkeypatch):
    monkeypatch.setattr(DrawCurves, "_draw", DRAW)


def test_a_session_has_them_of_all_its_numbers_when_it_ends(run, config, sessions, drawn):
    code, _, err = run("fit", "--config", config, "--trainer.max_steps=10")
    assert code == 0, err
    [session] = sessions()
    picture = session / "curves.png"
    height, width, _ = imread(picture).shape
    assert width > height > 300
    assert picture.stat().st_mtime >= (session / "metrics.csv").stat().st_mtime
    assert not (session / "curves.tmp.png").exists()


def test_a_session_that_can_not_draw_says_so_and_ends_well(run, config, sessions, drawn):
    assert run("fit", "--config", config, "--trainer.max_steps=5")[0] == 0
    [session] = sessions()
    (session / "curves.png").unlink()
    (session / "curves.png").mkdir()
    with pytest.warns(UserWarning, match="curves.png could not be drawn: IsADirectoryError"):
        assert run("fit", "--ckpt_path", session, "--trainer.max_steps=10")[0] == 0


def test_loss_and_score_are_drawn_and_the_best_is_marked(tmp_path, monkeypatch):
    (tmp_path / "metrics.csv").write_text(
        "step,train/loss,train/f1,val/f1,val/loss,learning_rate\n"
        "2,0.5,,,,0.1\n4,0.4,0.6,0.7,0.8,0.1\n6,0.3,,,,0.1\n8,0.2,0.9,0.65,0.6,0.1\n"
    )
    calls = []
    monkeypatch.setattr(drawing, "draw_curves", lambda *args, title: calls.append(args))
    monkeypatch.setattr(drawing.Path, "replace", lambda self, target: None)
    draw_session(tmp_path, "val/f1", "max", (4, 0.7))
    [(numbers, smooth, _, marks, modes)] = calls
    assert numbers == {
        "loss": {"train": ([2, 4, 6, 8], [0.5, 0.4, 0.3, 0.2]), "val": ([4, 8], [0.8, 0.6])},
        "f1": {"train": ([4, 8], [0.6, 0.9]), "val": ([4, 8], [0.7, 0.65])},
    }
    assert (smooth, marks, modes) == (0.0, {"f1": (4, 0.7)}, {"f1": "max", "loss": "min"})


@pytest.mark.parametrize(
    ("mode", "title"),
    [("max", "mae (higher is better)"), ("min", "mae (lower is better)"), ("unknown", "mae")],
)
def test_a_diagram_says_which_score_is_better(tmp_path, monkeypatch, mode, title):
    titles = []
    monkeypatch.setattr(drawing, "_label", lambda axes, name: titles.append(name) or axes)
    numbers = {"loss": {"a": ([1, 2], [3.0, 4.0])}, "mae": {"a": ([1, 2], [3.0, 4.0])}}
    drawing.draw_curves(numbers, 0.0, tmp_path / "a.png", None, {"mae": mode})
    assert titles == ["loss", title]


@pytest.mark.parametrize("best", [None, (4, 0.7)])
@pytest.mark.parametrize("rows", ["", "step,val/loss\n4,0.7\n", "step,val/loss\n4,nan\n"])
def test_whatever_is_logged_can_be_drawn(tmp_path, rows, best):
    (tmp_path / "metrics.csv").write_text(rows)
    draw_session(tmp_path, "val/loss", "min", best)
    assert (tmp_path / "curves.png").exists() == bool(rows)


class Process:
    """A drawing that is done when it is told so."""

    all: ClassVar[list["Process"]] = []

    def __init__(self, command, **options) -> None:
        self.iteration, self.returncode, self.killed = command[-1], None, False
        self.all.append(self)

    def poll(self):
        return self.returncode

    def communicate(self):
        return None, ""

    def kill(self) -> None:
        self.killed = True


@pytest.fixture
def validate(tmp_path, monkeypatch):
    """Validates at a time: validate(iteration, at_s) -> iterations of the processes so far."""
    now = [100.0]
    monkeypatch.setattr(Process, "all", [])
    monkeypatch.setattr(curves.subprocess, "Popen", Process)
    monkeypatch.setattr(curves, "monotonic", lambda: now[0])
    run = RunState(Session(tmp_path))
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn="fit"), sanity_checking=False, is_global_zero=True
    )
    module = SimpleNamespace(score_key="val/accuracy", score_mode="max")
    callback = DrawCurves(run)
    callback.on_train_start(trainer, module)

    def validate_(iteration: int, at_s: float) -> list[str]:
        now[0], run.newest_best = at_s, Best("val/accuracy", "max", iteration / 10, iteration)
        callback.on_validation_end(trainer, module)
        return [process.iteration for process in Process.all]

    validate_.callback = callback
    return validate_


def test_a_process_draws_every_20_s_and_never_two_at_once(validate):
    assert validate(1, at_s=119) == []
    assert validate(2, at_s=120) == ["2"]
    assert validate(3, at_s=150) == ["2"]  # the first is not done
    Process.all[0].returncode = 0
    assert validate(4, at_s=151) == ["2", "4"]
    Process.all[1].returncode = 0
    assert validate(5, at_s=170) == ["2", "4"]
    assert validate(6, at_s=171) == ["2", "4", "6"]


@pytest.mark.parametrize("hook", ["on_fit_end", "teardown"])
def test_the_end_draws_the_newest_numbers_once_and_waits_for_no_process(
    validate, monkeypatch, hook
):
    drawn = []
    monkeypatch.setattr(drawing, "draw_session", lambda *args: drawn.append(args[1:]))
    monkeypatch.setattr(DrawCurves, "_draw", DRAW)
    validate(1, at_s=120)
    getattr(validate.callback, hook)()
    assert Process.all[0].killed and drawn == [("val/accuracy", "max", (1, 0.1))]
    validate.callback.teardown()
    assert len(drawn) == 1


def test_the_end_draws_nothing_that_a_process_has_drawn(validate, monkeypatch):
    drawn = []
    monkeypatch.setattr(DrawCurves, "_draw", drawn.append)
    validate(1, at_s=120)
    Process.all[0].returncode = 0
    validate.callback.on_fit_end()
    assert not drawn and not Process.all[0].killed
