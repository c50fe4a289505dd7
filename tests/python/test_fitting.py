"""`fit` and `load`: the command line's run, from Python."""

import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import TinyData, TinyModule
from lightning.pytorch.callbacks import LearningRateMonitor
from tiny import Breaks, same, settings, weights

import lightning_trainer
from lightning_trainer import RunError, TrainedSession, fit, load
from lightning_trainer.session.secrets import NOT_STORED

TRAINER = {"accelerator": "cpu", "max_steps": 6, "val_check_interval": 3, "log_every_n_steps": 2}


class NeedsTheData(TinyModule):
    def create_model(self) -> None:
        self.n_samples = len(self.trainer.datamodule.val_dataset)
        super().create_model()


class WithToken(TinyModule):
    def __init__(self, api_token: str = "", **kwargs) -> None:
        super().__init__(**kwargs)


@pytest.fixture
def given(tmp_path):
    """Settings as a dict, whose sessions go to tmp_path."""
    return {
        "model": TinyModule,
        "data": {"class_path": TinyData},
        "output_path": tmp_path / "experiments",
        "trainer": TRAINER,
    }


def test_a_dict_trains_as_its_yaml_does(given, tmp_path):
    one = fit(given, tag="a")
    named = {"model": {"class_path": "conftest.TinyModule"}, "output_path": str(tmp_path / "other")}
    file = tmp_path / "same.yaml"
    file.write_text(yaml.safe_dump({**given, **named, "data": {"class_path": "conftest.TinyData"}}))
    other = fit(file, tag="a")
    assert same(weights(one.path), weights(other.path))
    assert {**one.settings, "output_path": ""} == {**other.settings, "output_path": ""}


def test_the_session_tells_what_became_of_the_run(given):
    session = fit(given)
    assert isinstance(session, TrainedSession) and session.path.parent == given["output_path"]
    assert (session.state, session.iteration) == ("finished", 6)
    assert (session.score_name, session.score_mode) == ("val/accuracy", "max")
    assert session.score == max(session.curves()["val/accuracy"][1])
    expected = f"'{session.path}': finished, iteration 6, val/accuracy (max) {session.score:.4g}"
    assert repr(session) == f"TrainedSession({expected})"


def test_options_win_over_the_settings_and_name_single_keys_of_a_group(given):
    options = {"model": {"learning_rate": 0.5}, "trainer": {"max_steps": 2}, "tag": "mine"}
    stored = fit(given, **options, **{"data.batch_size": 5}).settings
    assert stored["tag"] == "mine" and stored["trainer"]["max_steps"] == 2
    assert stored["trainer"]["val_check_interval"] == 3
    assert stored["model"]["init_args"]["learning_rate"] == 0.5
    assert stored["data"]["init_args"]["batch_size"] == 5


def test_classes_and_numbers_of_numpy_may_be_anywhere_in_the_settings(given):
    callbacks = [{"class_path": LearningRateMonitor, "init_args": {"logging_interval": "step"}}]
    options = {"trainer": {"callbacks": callbacks, "max_steps": np.int64(2)}}
    stored = fit(given, **options, model={"class_path": TinyModule, "init_args": {}}).settings
    assert stored["trainer"]["callbacks"][0]["init_args"]["logging_interval"] == "step"
    assert stored["trainer"]["max_steps"] == 2


def test_a_session_goes_on_and_ends_as_one_that_was_never_stopped(given):
    whole = fit(given)
    half = fit(given, trainer={"max_steps": 2})
    assert fit(ckpt_path=half, trainer={"max_steps": 6}).path == half.path
    assert same(weights(half.path), weights(whole.path))


def test_load_gives_the_best_model_for_inference(given):
    session = fit(given)
    loaded = load(str(session.path))
    assert not loaded.module.training and loaded.path == session.path
    best = {n: t for n, t in weights(session.path, "best").items() if n.startswith("model.")}
    assert same({f"model.{n}": t for n, t in loaded.module.model.state_dict().items()}, best)
    assert session.module.model is not loaded.module.model
    with torch.no_grad():
        assert loaded.module({"x": torch.zeros(3, 4)}).shape == (3, 2)
    last = load(session.path / "checkpoints" / "last.ckpt", device="meta")
    assert {p.device.type for p in last.module.parameters()} == {"meta"}


def test_load_reads_the_data_only_for_a_model_that_asks_for_it(given, monkeypatch):
    plain, needing = fit(given), fit(given, model=NeedsTheData)
    assert load(needing).module.n_samples > 0
    monkeypatch.setattr(TinyData, "create_data", lambda self: pytest.fail("was read"))
    load(plain)


def test_the_curves_are_those_of_the_log(given):
    curves = fit(given).curves()
    steps, losses = curves["train/loss"]
    assert steps.tolist() == [2, 4, 6] and losses.dtype == float and (losses > 0).all()


def test_without_pandas_the_table_says_what_is_missing(given, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="pandas"):
        fit(given).table()


def local_class() -> type:
    class Local(TinyModule):
        pass

    return Local


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda given: fit(given, trainer={"max_step": 3}), r"Did you mean `trainer\.max_steps`"),
        (lambda given: fit("none.yaml"), r"^`config` is 'none.yaml': there is no such file$"),
        (lambda given: fit(__file__), "which is not YAML|which holds no settings"),
        (lambda given: fit(), r"fit\.data, fit\.model\. Give `--config"),
        (lambda given: fit(ckpt_path="none"), "there is no such session folder"),
        (lambda given: fit(given, model=local_class()), "defined in a function"),
        (lambda given: fit(given, trainer={"callbacks": [LearningRateMonitor()]}), '"class_path"'),
        (lambda given: load("none"), "no session folder"),
    ],
)
def test_a_refusal_is_one_line_of_an_exception(given, call, told, capfd):
    with pytest.raises(RunError, match=told) as refused:
        call(given)
    assert "\n" not in str(refused.value) and refused.value.session is None
    assert "error" not in capfd.readouterr().err


def test_a_fault_in_a_hook_is_the_cause_and_stands_in_the_log(given):
    with pytest.raises(RunError, match="ValueError: a fault in a hook") as failed:
        fit(given, model=Breaks, trainer={"max_steps": 20})
    cause = failed.value.__cause__
    assert isinstance(cause, ValueError)
    assert cause.__traceback__.tb_frame.f_code.co_name == "forward_model"
    session = TrainedSession(failed.value.session)
    assert (session.state, session.iteration) == ("failed", 12)
    assert "ValueError: a fault in a hook" in (session.path / "log.txt").read_text()
    assert fit(given, trainer={"max_steps": 2}).state == "finished"


def test_a_secret_is_given_to_the_class_and_stored_nowhere(given):
    session = fit(given, model={"class_path": WithToken, "init_args": {"api_token": "hunter2-x9"}})
    texts = [path.read_bytes() for path in session.path.rglob("*") if path.is_file()]
    assert not any(b"hunter2-x9" in text for text in texts)
    assert settings(session.path)["model"]["init_args"]["api_token"] == NOT_STORED
    with pytest.raises(RunError, match="api_token"):
        load(session)


def test_the_summary_names_what_goes_on_in_python(given, capfd):
    session = fit(given)
    told = capfd.readouterr().out
    assert f'To go on:      fit(ckpt_path="{session.path}", trainer={{"max_steps": N}})\n' in told
    assert f'To use:        load("{session.path}").module\n' in told


def test_fit_and_load_are_public():
    assert {"fit", "load", "RunError", "TrainedSession"} <= {*lightning_trainer.__all__}
