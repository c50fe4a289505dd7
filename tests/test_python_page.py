"""Every block of docs/python.md runs, one after the other, as in a notebook."""

import re

from conftest import ROOT

PAGE = (ROOT / "docs/python.md").read_text()


def test_every_block_of_the_page_runs(tmp_path, monkeypatch, capfd):
    for name in ("configs", "projects"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == PAGE.count("```") / 2
    names: dict = {}
    for block in blocks:
        exec(block, names)
    told = capfd.readouterr().out
    assert "val/accuracy max 0." in told and "Did you mean `trainer.max_steps`" in told
    assert (names["narrow"].iteration, names["loaded"].state) == (60, "finished")
