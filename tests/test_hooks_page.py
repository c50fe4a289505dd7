"""What docs/hooks.md says of the hooks is so; most of it is tested beside the code."""

import inspect
import re
import sys
from types import ModuleType

import lightning.pytorch as pl
import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn
from torch.optim import Adam
from torchmetrics import MeanSquaredError

from lightning_trainer import BaseModule

PAGE = (ROOT / "docs" / "hooks.md").read_text()


def test_the_page_shows_a_project_that_trains(run, config, monkeypatch):
    [source] = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    page = ModuleType("hooks_page")
    given = (BaseModule, Tensor, Adam, MeanSquaredError)
    vars(page).update({each.__name__: each for each in given}, nn=nn, torch=torch)
    exec(compile(source, "hooks.md", "exec"), vars(page))
    monkeypatch.setitem(sys.modules, "hooks_page", page)
    code, out, err = run("fit", "--config", config, "--model=hooks_page.Adversaries")
    assert code == 0, err
    assert re.search(r"\| loss: [\d.]+ \(generator [\d.]+, critic [\d.]+\) \|", out)
    assert "Finished at iteration 23\n" in out


@pytest.mark.parametrize("name", re.findall(r"`--(?:trainer|model)\.(\w+)", PAGE))
def test_the_options_that_the_page_names_exist(name):
    arguments = [*inspect.signature(pl.Trainer).parameters]
    assert name in [*arguments, *inspect.signature(BaseModule).parameters]
