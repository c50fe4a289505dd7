"""What a project counts has its own unit in the log."""

import re

from conftest import TinyModule
from tiny import logged


class Tokens(TinyModule):
    examples_unit = "tokens"

    def count_examples(self, batch: dict) -> int:
        return 100 * len(batch["x"])


def test_a_project_counts_what_it_wants_and_names_it(run, config, sessions):
    flags = ("--model=test_units.Tokens", "--trainer.max_steps=8")
    code, out, err = run("fit", "--config", config, *flags)
    assert code == 0, err
    told = [
        float(n) for n in re.findall(r"^Iteration +\d/8 \| tokens/s: ([\d.]+) \| loss", out, re.M)
    ]
    assert len(told) == 2
    assert re.search(r"^Tokens/s: +[\d.]+$", out, re.M)
    assert "xamples/s" not in out
    values = logged(sessions()[0], "timing/examples_per_s").values()
    assert [round(value, 1) for value in values] == told
