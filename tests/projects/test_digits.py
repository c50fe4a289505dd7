"""The smallest project is small, and learns."""

import csv

import pytest
import torch
from conftest import ROOT

from projects.digits import DigitsData, DigitsModule


def test_its_config_reaches_a_score_above_0_95_in_200_iterations(run, tmp_path):
    options = ["--output_path", tmp_path / "experiments", "--trainer.max_steps", "200"]
    code, out, err = run("fit", "--config", ROOT / "configs/digits.yaml", *options)
    assert code == 0, err
    [session] = (tmp_path / "experiments").iterdir()
    with (session / "metrics.csv").open(newline="") as file:
        scores = [float(row["val/accuracy"]) for row in csv.DictReader(file) if row["val/accuracy"]]
    assert len(scores) == 2
    assert max(scores) > 0.95
    assert f"Best score:    {max(scores):.4f} at iteration " in out
    code, out, err = run("test", "--ckpt_path", session)  # its test data are its validation data
    assert code == 0, err
    assert f"Test score (accuracy, higher is better): {max(scores):.3f}\n" in out


def test_it_is_small_enough_to_be_read_at_a_glance():
    assert len((ROOT / "projects/digits/__init__.py").read_text().splitlines()) <= 60


def test_its_samples_are_images_in_0_to_1_with_a_label_and_no_one_is_in_both_sets():
    data = DigitsData()
    data.create_data()
    train, val = data.train_dataset, data.val_dataset
    assert (len(train), len(val)) == (1437, 360)
    for sample in (*train[:20], *val[:20]):
        assert sample["image"].shape == (1, 8, 8)
        assert sample["image"].dtype == torch.float32
        assert type(sample["label"]) is int
    images = torch.cat([sample["image"] for sample in (*train, *val)])
    assert images.min() == 0
    assert images.max() == 1
    assert {sample["label"] for sample in val} == set(range(10))
    assert not {id(sample) for sample in train} & {id(sample) for sample in val}


def test_its_data_are_the_same_each_time():
    first, second = DigitsData(), DigitsData()
    first.create_data()
    second.create_data()
    for a, b in zip(first.val_dataset, second.val_dataset, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert a["label"] == b["label"]


@pytest.mark.parametrize("width", [4, 32])
def test_its_network_gives_logits_for_ten_classes(width):
    module = DigitsModule(width=width)
    module.configure_model()
    assert module.forward_model({"image": torch.rand(3, 1, 8, 8)}).shape == (3, 10)
    n_parameters = sum(parameter.numel() for parameter in module.model.parameters())
    first, second = 9 * width + width, 9 * width * 2 * width + 2 * width
    assert n_parameters == first + second + 32 * width * 10 + 10
