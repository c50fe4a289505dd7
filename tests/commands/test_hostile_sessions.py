"""One bad folder never blocks the table of all; some inputs of each family of tests/hostile.py."""

import os
import shutil

import hostile
import pytest

from lightning_trainer.session import drawing

MINE = "session_node1_2024_02_29_12_00_01_honest"


@pytest.mark.long
@pytest.mark.parametrize("name", hostile.FAMILIES)
def test_a_bad_folder_is_a_row_of_the_table(run, first_half, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drawing, "draw_curves", lambda *_: None)  # it takes a second
    place = tmp_path / "received"
    (place / "precious").mkdir(parents=True)
    (place / "precious/text").write_text("mine")
    shutil.copytree(first_half, place / MINE)
    for number in (0, 1):
        session = hostile.make(name, number, first_half, place)
        code, out, err = run("sessions", place)
        assert (code, "Traceback" in out + err) == (0, False)
        assert ["01_honest" in line for line in out.splitlines()[1:]].count(True) == 1
        assert len(out.splitlines()) == 3
        for line in err.splitlines():
            assert line.startswith(f"{session}: ")
        code, out, err = run("compare", session, place / MINE, "--output", tmp_path / "a.png")
        assert (code, "Traceback" in out + err) == (0, False)
        code, out, err = run("report", place, "--output", tmp_path / "a.html")
        assert (code, "Traceback" in out + err) == (0, False)
        assert (tmp_path / "a.html").stat().st_size < 5e6
        assert not hostile.EXECUTED.exists()
        shutil.rmtree(session)
    assert (place / "precious/text").read_text() == "mine"
    assert os.listdir(place / "precious") == ["text"]


def test_nothing_reaches_the_terminal_but_text(run, first_half, tmp_path):
    session = shutil.copytree(first_half, tmp_path / "session_node1_2024_02_29_12_00_00_a")
    text = (session / "config.yaml").read_text()
    (session / "config.yaml").write_text(text.replace("tag: tiny", 'tag: "a\\e]0;b\\a"'))
    (session / "environment.yaml").write_text('started: "\\e[2J"\n')
    shutil.copytree(first_half, tmp_path / "session_node1_2024_02_29_12_00_01_b")
    for form in ("table", "markdown", "json"):
        _, out, err = run("sessions", tmp_path, "--format", form)
        assert "\x1b" not in out + err
