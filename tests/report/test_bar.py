"""A bar and the rules between blocks, on terminals of any width."""

import io

import pytest

from lightning_trainer.report.bar import new_bar
from lightning_trainer.run import state


@pytest.mark.parametrize("columns", [0, 60, 82, 200])
def test_a_bar_and_a_rule_fit_in_and_the_bar_is_the_same_everywhere(monkeypatch, columns):
    size = type("Size", (), {"columns": columns})
    monkeypatch.setattr(state.os, "get_terminal_size", lambda *_: size)
    assert state.rule() == "-" * min(columns or 82, 82)
    stream = io.StringIO()
    with new_bar(12_345, file=stream, ascii=True) as bar:
        bar.update(12_345)
    last = stream.getvalue().rstrip().rpartition("\r")[2].rstrip()
    assert last.startswith("100%|################| 12345/12345 [00:0")
    assert len(last) <= len(state.rule())
