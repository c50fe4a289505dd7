"""What docs/porting.md counts and shows is true, and its scripts run."""

import re

import pytest
import torch
from conftest import ROOT

from projects.digits import DigitsData, DigitsModule

PAGE = (ROOT / "docs/porting.md").read_text()
FILES = re.findall(r"`((?:projects|configs)/digits\S*)`", PAGE)
SCRIPTS = dict(re.findall(r"<!-- (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


def n_lines(text: str) -> int:
    """Lines without empty ones."""
    return len([line for line in text.splitlines() if line.strip()])


def test_the_lines_are_counted_right():
    ours = "".join((ROOT / name).read_text() for name in FILES)
    counted = [n_lines(text) for text in (*SCRIPTS.values(), ours)]
    assert re.findall(r"^\| .* \| (\d+) \|", PAGE, re.M) == [str(n) for n in counted]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_of_the_page_learns_and_keeps_its_best_weights(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "script"}
    exec(SCRIPTS[name].replace(" = 13, 64", " = 2, 64"), namespace)
    if name == "torch":
        best, kept = namespace["best"], tmp_path / "best.pt"
    else:
        best, kept = namespace["keep_best"].best_model_score, namespace["keep_best"].best_model_path
    assert best > 0.7
    assert torch.load(kept, weights_only=True)


class PairData(DigitsData):
    def create_data(self) -> None:
        super().create_data()
        for name in ("train_dataset", "val_dataset"):
            setattr(self, name, [(s["image"], s["label"]) for s in getattr(self, name)])


class PairModule(DigitsModule):
    def forward_model(self, batch):
        return self.model(batch[0])

    def forward_loss(self, batch, output):
        return self.loss_fn(output, batch[1])

    def update_metrics(self, metrics, batch, output) -> None:
        metrics.update(output, batch[1])

    def visualise(self, batch, output, mode: str) -> None: ...


def test_pairs_may_stay_pairs(run, tmp_path):
    own = (f"--data={__name__}.PairData", f"--model={__name__}.PairModule")
    few = ("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.callbacks=null")
    config = ROOT / "configs/digits.yaml"
    code, out, err = run("fit", "--config", config, f"--output_path={tmp_path}", *own, *few)
    assert code == 0, err
    assert "Val score (accuracy, higher is better): " in out
