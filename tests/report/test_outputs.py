"""`predict` writes a table with a row for each sample."""

import csv
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TinyData, TinyModule
from folders import make_session

from lightning_trainer.base.predicting import default_columns
from lightning_trainer.report.outputs import (
    WritePredictions,
    _as_csv,
    _joined,
    _sorted,
    _write_parquet,
)


class Classes(TinyData):
    def create_data(self) -> None:
        super().create_data()
        self.classes = ["even", "odd"]

    def create_predict_data(self, path: str) -> None:
        self.predict_dataset = [{"x": torch.ones(4), "name": f"{path}/{n}.png"} for n in range(3)]


class Own(TinyModule):
    def prediction_columns(self, batch, output):
        return {"i": batch["i"].tolist(), "margin": (output[:, 1] - output[:, 0]).tolist()}


class Uneven(TinyModule):
    def prediction_columns(self, batch, output):
        return {"a": [1], "b": [1, 2]}


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


def test_classes_are_named_with_their_probabilities_and_other_data_has_its_own_file(
    run, fit, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    session = fit("--data=test_outputs.Classes", "--trainer.max_steps=5")
    code, out, err = run("predict", "--ckpt_path", session)
    assert code == 0, err
    assert out.endswith(f"Table saved to: {session}/predictions.csv\n")
    found = rows(session / "predictions.csv")
    assert [*found[0]] == ["index", "label", "predicted", "probability", "p_even", "p_odd"]
    assert [row["index"] for row in found] == [str(n) for n in range(10)]
    assert [row["label"] for row in found] == ["even", "odd"] * 5
    for row in found:
        assert float(row["p_even"]) + float(row["p_odd"]) == pytest.approx(1, abs=1e-5)
        assert row["probability"] == row[f"p_{row['predicted']}"]
    before = (session / "predictions.csv").read_bytes()
    code, _, err = run("predict", "--ckpt_path", session, "--predict_data", "some/new")
    assert code == 0, err
    found = rows(session / "predictions_new.csv")
    assert [row["name"] for row in found] == [f"some/new/{n}.png" for n in range(3)]
    assert (session / "predictions.csv").read_bytes() == before
    assert len(torch.load(session / "predictions_new.pt")) == 1


def test_a_project_gives_its_own_columns(run, fit):
    session = fit("--model=test_outputs.Own", "--trainer.max_steps=5")
    assert run("predict", "--ckpt_path", session)[0] == 0
    assert [*rows(session / "predictions.csv")[3].items()][:2] == [("index", "3"), ("i", "3")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model=test_outputs.Uneven"], "`Uneven.prediction_columns` has given {'index': 1, "),
        (["--predict_data=x"], "`predict_data` is 'x', and `TinyData` does not say how to read it"),
    ],
)
def test_what_is_wrong_is_one_line(run, half, options, message):
    code, _, err = run("predict", "--ckpt_path", half, *options)
    assert code == 1
    assert message in err.splitlines()[-1]


def columns(batch, output, classes=None) -> dict:
    data = SimpleNamespace(classes=classes)
    return default_columns(SimpleNamespace(trainer=SimpleNamespace(datamodule=data)), batch, output)


def test_values_are_columns_and_what_is_large_is_left_out():
    two = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert columns({}, two) == {"output_0": [1, 3], "output_1": [2, 4]}
    assert columns({"id": ["a", "b"]}, {"mean": two[:, 0], "all": torch.zeros(2, 3, 8, 8)}) == {
        "id": ["a", "b"],
        "mean_output": [1, 3],
    }
    assert columns({"label": torch.tensor([0.5, 1.5])}, two[:, :1])["label"] == [0.5, 1.5]
    many = columns({"label": torch.tensor([1, 9])}, torch.zeros(2, 30))
    assert many.keys() == {"label", "predicted", "probability"}


def test_whatever_a_batch_holds_is_a_table_of_equal_lengths():
    batch = {"label": torch.zeros(7, dtype=torch.long), "name": ["a"], "path": [object()]}
    assert columns(batch, torch.zeros(3)) == {"output": [0, 0, 0]}
    assert columns([torch.zeros(2)], [torch.zeros(2)]) == {}
    assert columns({"label": torch.tensor([-100])}, torch.zeros(1, 2), ["a", "b"])["label"] == [
        -100
    ]


def test_a_number_of_the_whole_batch_is_no_row():
    batch, output = {"x": torch.zeros(3, 4)}, {"y": torch.zeros(3), "scale": torch.ones(1)}
    assert columns(batch, output) == {"y_output": [0, 0, 0]}


def test_tensors_and_arrays_are_columns_of_numbers():
    given = {"a": torch.tensor([0.5, 2]), "b": np.float32([1, 3]), "c": [torch.tensor(4), None]}
    writer = WritePredictions(SimpleNamespace())
    module = SimpleNamespace(prediction_columns=lambda batch, output: given)
    writer.write_on_batch_end(None, module, None, [0, 1], None, 0, 0)
    assert _as_csv(writer._columns) == "index,a,b,c\n0,0.5,1,4\n1,2,3,\n"


def test_what_parquet_can_not_hold_is_told_and_leaves_the_csv(tmp_path):
    pytest.importorskip("pyarrow")
    told = _write_parquet({"label": ["cat", -1]}, tmp_path / "predictions.csv")
    assert told.startswith(" (not as Parquet: ") and not [*tmp_path.iterdir()]


def test_the_rows_of_several_processes_are_in_the_order_of_the_data():
    parts = [{"index": [0, 2], "a": ["x", "z"]}, {}, {"index": [1], "a": ["y"]}]
    assert _sorted(_joined(parts)) == {"index": [0, 1, 2], "a": ["x", "y", "z"]}


def test_a_parquet_file_is_written_where_pyarrow_is(run, half):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run("predict", "--ckpt_path", half)[1].endswith(" and predictions.parquet\n")
    assert parquet.read_table(half / "predictions.parquet").num_rows == 10


def test_the_predictions_of_sessions_are_put_beside_each_other(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n, (tag, predicted) in enumerate({"a": "cat", "b": "dog"}.items()):
        session = make_session(tmp_path / "experiments", tag, second=n, run={})
        (session / "metrics.csv").write_text("step,train/loss\n1,2\n")
        table = f"index,label,predicted,p_cat\n0,cat,{predicted},0.5\n1,dog,dog,0.25\n"
        (session / "predictions.csv").write_text(table)
    code, out, err = run("compare", "a", "b", "--predictions", "both.csv")
    assert code == 0, err
    assert out.endswith(
        "a: 2 of 2 as labelled\nb: 1 of 2 as labelled\nPredicted alike by all: 1 of 2\n"
        "Predictions: both.csv\n"
    )
    assert rows(tmp_path / "both.csv")[0] == {
        **{"index": "0", "label": "cat", "a predicted": "cat", "a p_cat": "0.5"},
        **{"b predicted": "dog", "b p_cat": "0.5", "alike": "false"},
    }
    (session / "predictions.csv").write_text("index,label\n0,cat\n")
    assert "are not of the samples of a" in run("compare", "a", "b", "--predictions=c.csv")[2]
    (session / "predictions.csv").unlink()
    message = run("compare", "a", "b", "--predictions=c.csv")[2]
    assert f"has no predictions: `predict --ckpt_path {session.relative_to(tmp_path)}`" in message
