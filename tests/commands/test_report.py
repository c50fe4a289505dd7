"""`report`: one page that needs nothing else, and in which no text of a session is markup."""

import csv
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import ROOT
from folders import make_run, make_session, scores
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from test_groups import make_seeds

from lightning_trainer.commands.page_curves import read_numbers, read_times, split_name
from lightning_trainer.commands.page_pictures import read_pictures
from lightning_trainer.session.shown_curve import ShownCurve

PNG = b"\x89PNG\r\n\x1a\n"
EVIL = "</script><img src=x onerror=alert(1)>\"'&amp;<!--"


class Page(HTMLParser):
    """What a page holds; fails at an element that is not closed, or closed where it is not open."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._texts, self._open = [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, text):
        if not {"script", "style"} & {*self._open}:
            self._texts.append(text)

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def data(self) -> dict:
        text = re.search(r'<script id="data"[^>]*>(.*?)</script>', self.source, re.S)[1]
        return json.loads(text)

    def curve(self, chart: str, part: str = "val", session: int = 0) -> tuple[list, list]:
        [found] = [
            curve
            for each in self.data["charts"]
            if each["name"] == chart
            for curve in each["curves"]
            if (curve["part"], curve["session"]) == (part, session)
        ]
        return found["x"], found["y"]


@pytest.fixture
def page(run, tmp_path, monkeypatch):
    """Makes the page of sessions."""
    monkeypatch.chdir(tmp_path)

    def page_(*sessions: Path | str) -> Page:
        code, out, err = run("report", *sessions)
        size = (tmp_path / "report.html").stat().st_size
        assert (code, err) == (0, "")
        assert re.fullmatch(r"Report: report.html \([\d.]+ [kM]B\)\n", out) and size < 5e6
        return Page(tmp_path / "report.html")

    return page_


def add_event(folder: Path, *events: Event) -> None:
    writer = EventFileWriter(str(folder))
    for event in events:
        writer.add_event(event)
    writer.close()


def picture(tag: str, step: int, content: bytes) -> Event:
    event = Event(step=step)
    event.summary.value.add(tag=tag).image.encoded_image_string = PNG + content.ljust(200)
    return event


def test_the_page_has_the_numbers_of_metrics_csv(page, tmp_path):
    session = make_session(tmp_path, "base", rows=scores(0.5, 0.75, 0.625), run={})
    made = page(session)
    with (session / "metrics.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    for name in ("val/accuracy", "val/loss", "train/loss", "timing/examples_per_s"):
        chart, part = split_name(name)
        x, y = made.curve(chart, part)
        steps = [int(row["step"]) for row in rows]
        # A training's loss is a mean since the point before, and lies in the middle.
        middle = [(a + b) / 2 for a, b in zip([0, *steps], steps, strict=False)]
        assert x == (middle if part == "train" else steps)
        assert y == pytest.approx([float(row[name]) for row in rows], rel=1e-7)
    order = [(chart["name"], chart["better"], chart["main"]) for chart in made.data["charts"]]
    assert order == [
        ("loss", "min", True),
        ("accuracy", "max", True),
        ("timing/examples_per_s", "", False),
    ]


def test_scores_settings_and_the_end_of_a_run_are_told_with_their_directions(page, tmp_path):
    score = {"name": "val/mae", "mode": "min", "best": 2.0, "iteration": 20}
    used = {"memory_gb": 1.25, "gpu_percent": None}
    run = {"score": score, "reason": "all 40 iterations are done", "used": used}
    a = make_session(tmp_path, "a", rows=[{"step": 10, "val/mae": 3.0}], run=run)
    b = make_session(tmp_path, "b", second=1, rows=scores(0.5), settings={"width": 4}, run={})
    text = " ".join(page(a, b).text.split())
    assert "2.0000 at iteration 20, mae, lower is better" in text
    assert "0.8750 at iteration 30, accuracy, higher is better" in text
    assert "finished: all 40 iterations are done" in text and "1.25 GB of memory" in text
    assert re.search(r"score ?mae \(min\) ?accuracy \(max\)", text)
    assert re.search(r"width ?- ?4", text)
    for command in ("fit", "test"):
        assert re.search(rf"python \S+ {command} --ckpt_path {a}", text)


def test_sessions_that_differ_only_in_a_seed_are_a_group(page, tmp_path):
    make_seeds(tmp_path / "all", "wide", [0.98, 0.97, 0.99])
    make_seeds(tmp_path / "all", "narrow", [0.92, 0.9, 0.94], width=4)
    made = page(tmp_path / "all", "--over", "seed_everything")
    assert made.data["groups"] == ["wide", "narrow"]
    assert sorted(session["group"] for session in made.data["sessions"]) == [0, 0, 0, 1, 1, 1]
    assert "Best mean accuracy (max): wide (0.9800 +- 0.0100, 3 runs)" in made.text


def test_a_page_needs_no_network_and_no_file_and_runs_no_other_script(page, tmp_path):
    session = make_session(tmp_path, rows=scores(0.5), run={})
    add_event(session, picture("val/predictions", 10, b"a"))
    made = page(session)
    for tag, attributes in made.elements:
        assert tag not in ("link", "iframe", "object", "base", "form", "a")
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert not [name for name in attributes if name.startswith("on")]
    style = re.search(r"<style>(.*?)</style>", made.source, re.S)[1]
    assert "url(" not in style and "@import" not in style
    scripts = re.findall(r"<script>(.*?)</script>", made.source, re.S)
    addresses = [a for script in scripts for a in re.findall(r"https?://[\w./]+", script)]
    assert {*addresses} <= {"http://www.w3.org/2000/svg"}  # a name, which nothing loads
    assert "Leon Sorokin" in scripts[0] and "MIT" in scripts[0]
    policy = made.elements[3][1]["content"]
    assert policy.startswith("default-src 'none'") and policy.count("sha256-") == len(scripts) == 2


def test_nothing_that_a_session_holds_becomes_markup(page, tmp_path):
    rows = [{"step": 1, f"val/{EVIL}": 0.5, "train/loss": 1.0}]
    score = {"name": f"val/{EVIL}", "mode": "max", "best": 0.5, "iteration": 1}
    settings = {EVIL: EVIL}
    honest = make_session(tmp_path / "honest", rows=scores(0.5), run={})
    run = {"score": score, "reason": EVIL, "by": EVIL}
    session = make_session(tmp_path, "x", second=1, rows=rows, run=run, settings=settings)
    for name in ("log.txt", "uncommitted.patch", "packages.txt", "failure.txt"):
        text = f"a.py:1: UserWarning: {EVIL}\n+{EVIL}\n\0\x1b[2J\x9b\udcff"
        (session / name).write_text(text, errors="surrogateescape")
    session = session.rename(tmp_path / f"session {EVIL.replace('/', '')}")
    add_event(session, picture(EVIL, 1, b"a"))
    (session / "environment.yaml").write_text(f"host: {json.dumps(EVIL)}\nrestarts: 3\n")
    made = page(honest, session)
    plain = page(honest, make_session(tmp_path / "plain", rows=scores(0.5), run={}))
    kinds = [{tag for tag, _ in each.elements} for each in (made, plain)]
    assert kinds[0] - kinds[1] <= {"figure", "figcaption", "img", "ins", "del", "pre", "ul", "li"}
    assert [tag for tag, _ in made.elements].count("script") == 3
    assert made.text.count(f"UserWarning: {EVIL}") >= 2
    assert EVIL.rpartition("/")[2] in [chart["name"] for chart in made.data["charts"]]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", made.source)


def test_secrets_stay_hidden(page, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    session = make_session(tmp_path, rows=scores(0.5), run={}, settings={"api_key": "abcdefgh12"})
    token = "ghp_" + "a1B2c3D4e5F6" * 3
    for name in ("log.txt", "uncommitted.patch", "environment.yaml"):
        told = f"host: {token}\nUserWarning: correct-horse-battery\n"
        (session / name).write_text(told.replace("UserWarning", "note"))
    source = page(session).source
    assert not [text for text in (token, "correct-horse", "abcdefgh12") if text in source]


@pytest.mark.parametrize(
    "rows", [None, [{"step": 5, "val/accuracy": 0.5}], [{"step": n, "a": "nan"} for n in range(5)]]
)
def test_sessions_without_numbers_with_one_and_with_nan_have_a_page(page, tmp_path, rows):
    made = page(make_session(tmp_path, rows=rows))
    assert len(made.data["charts"]) == (rows is not None)
    if rows and "a" in rows[0]:
        [curve] = made.data["charts"][0]["curves"]
        assert (curve["y"], curve["strange"]) == ([None] * 5, 5)


def test_running_archived_and_damaged_sessions_have_a_page(page, tmp_path, run):
    archived = make_session(tmp_path / "archive/2024", "old", rows=scores(0.5), run={})
    damaged = make_session(tmp_path / "archive", "bad", second=1)
    (damaged / "run.json").write_text("{")
    (damaged / "metrics.csv").write_bytes(b"\0" * 5000)
    (damaged / "log.txt").unlink()
    (damaged / "log.txt").mkdir()
    code, _, err = run("report", tmp_path / "archive", "--output", tmp_path / "b.html")
    assert (code, "run.json" in err) == (0, True)
    assert "damaged" in Page(tmp_path / "b.html").text
    assert page(archived).text


def test_many_numbers_of_many_sessions_stay_below_five_megabytes(page, tmp_path):
    names = [f"val/n{n}" for n in range(200)]
    for second in range(5):
        rows = [{"step": s, **{n: math.sin(s) * 1e-3 for n in names}} for s in range(60)]
        session = make_session(tmp_path / "all", f"t{second}", second=second, rows=rows, run={})
        (session / "uncommitted.patch").write_text("+ a line of code\n" * 60_000)
        for name in ("mistakes", "confusion_matrix", "test_mistakes"):
            (session / f"{name}.png").write_bytes(PNG + bytes(300_000))
    made = page(tmp_path / "all")
    assert len(made.data["charts"]) == 200
    assert "more bytes are in uncommitted.patch" in made.text


def test_of_many_points_the_lowest_and_the_highest_of_each_stretch_are_kept():
    curve = ShownCurve(is_mean=False)
    for n in range(100_000):
        curve.add(
            n, math.inf if n == 50 else 1e9 if n == 33_333 else -1e9 if n == 77_777 else n % 7
        )
    x, y = curve.points(500)
    assert len(x) <= 500 and x == sorted(x) and (x[0], x[-1]) == (0, 99_999)
    assert y[x.index(33_333)] == 1e9 and y[x.index(77_777)] == -1e9
    assert (curve.n_points, curve.n_strange) == (100_000, 1)


def test_more_names_than_a_page_takes_are_counted(tmp_path):
    rows = [{"step": 1, **{f"n{n}": n for n in range(350)}}]
    numbers = read_numbers(make_session(tmp_path, rows=rows), 300)
    assert (len(numbers.curves), numbers.n_left_out) == (300, 50)


def test_a_page_of_too_many_sessions_is_refused(run, tmp_path):
    for n in range(101):
        (tmp_path / f"session_node1_2024_02_29_12_00_{n % 60:02d}_t{n}").mkdir()
    code, _, err = run("report", tmp_path)
    assert (code, "101 sessions: a page has 100 at most" in err) == (2, True)


def test_a_page_that_can_not_be_written_is_one_message(run, tmp_path):
    session = make_session(tmp_path, rows=scores(0.5))
    code, _, err = run("report", session, "--output", tmp_path / "no/where.html")
    assert (code, err.count("\n")) == (2, 2)
    assert "no/where.html', which can't be written: No such file or directory" in err
    assert run("report", "nothing", "--folder", tmp_path)[0] == 2


def test_the_newest_picture_of_a_tag_and_that_of_the_best_score_are_shown(tmp_path):
    session = make_session(tmp_path)
    old = [picture("val/a", step, b"old %d" % step) for step in (10, 20, 30, 40)]
    add_event(session, *old, picture("train/b", 40, b"x"))
    restart = Event(step=31, session_log=SessionLog(status=SessionLog.START))
    (first,) = session.glob("events*")
    first.rename(session / "events.out.tfevents.1.a")
    add_event(session, restart, picture("val/a", 35, b"new"))
    (session / "mistakes.png").write_bytes(PNG + b"m")
    (session / "confusion_matrix.png").write_bytes(b"no picture")
    found = read_pictures(session, 20, 10**6)
    assert [(each.name, each.iteration) for each in found] == [
        *(("mistakes", None), ("val/a", 35), ("val/a", 20)),
    ]
    assert read_pictures(session, 20, 230) == found[:2]


@pytest.mark.parametrize("cut", [5, 30, 300])
def test_a_cut_or_damaged_event_file_ends_there(tmp_path, cut):
    session = make_session(tmp_path)
    add_event(session, picture("val/a", 1, b"a"), picture("val/a", 2, b"b"))
    [path] = session.glob("events*")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - cut])
    read_pictures(session, None, 10**6)
    path.write_bytes(content[:80] + b"\xff" * cut + content[80 + cut :])
    read_pictures(session, None, 10**6)


def test_times_are_those_of_the_lines_and_a_run_that_went_on_begins_before(tmp_path):
    line = "Iteration {:>6}/100 | examples/s: 1 | loss: 1 | time elapsed: 00h{:02d}m00s | ...\n"
    times = [(10, 1), (20, 2), (30, 3), (20, 4), (30, 5), (40, 5), (50, 6)]
    (tmp_path / "log.txt").write_text("".join(line.format(*pair) for pair in times))
    assert read_times(tmp_path) == ([0, 10, 20, 30, 50], [0, 60, 240, 300, 360])
    assert read_times(tmp_path / "nothing") == ([], [])


def test_neither_torch_nor_lightning_nor_matplotlib_is_imported(tmp_path):
    session = make_session(tmp_path, rows=scores(0.5), run={})
    add_event(session, picture("val/a", 1, b"a"))
    code = (
        "import sys; from lightning_trainer.main import main\n"
        f"try: main(['report', {str(session)!r}, '--output', {str(tmp_path / 'a.html')!r}])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'lightning', 'matplotlib', 'tensorflow', 'numpy'} & {*sys.modules}\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_run_json_of_a_run_that_has_not_ended_is_no_obstacle(page, tmp_path):
    session = make_session(tmp_path, rows=scores(0.5))
    make_run(state="running", times={"elapsed_s": "x", "data_s": math.inf}, used=None).write(
        session
    )
    assert "interrupted" in page(session).text
