"""What a tuner callback finds is the setting of the run, from its first iteration on."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, LearningRateFinder
from restarts import result, same
from tiny import logged, names, settings

CALLBACKS = "--trainer.callbacks+=lightning.pytorch.callbacks"
LR = (f"{CALLBACKS}.LearningRateFinder", "--trainer.callbacks.num_training_steps=20")
BATCH = (f"{CALLBACKS}.BatchSizeFinder", "--trainer.callbacks.max_trials=3")
SHORT = ("--trainer.max_steps=7",)


class Stays(Callback):
    """Stands for a callback of the project's own."""


def of_model(session) -> dict:
    return settings(session)["model"]["init_args"]


def test_a_learning_rate_that_was_found_is_the_setting_of_a_run_like_any_other(
    run, config, sessions
):
    flags = (*SHORT, "--trainer.callbacks+=test_finders.Stays", "--model.schedule=cosine")
    code, out, err = run("fit", "--config", config, *flags, *LR)
    assert code == 0, err
    [session] = sessions()
    found = of_model(session)["learning_rate"]
    assert f"LearningRateFinder: model.learning_rate: 0.01 -> {found}\n" in out
    assert logged(session, "learning_rate")[4] != 0.01
    last = torch.load(session / "checkpoints/last.ckpt")
    held = last["lightning_trainer"]["settings"]
    assert held["model"]["init_args"]["learning_rate"] == found
    assert last["hyper_parameters"]["learning_rate"] == found
    [stays] = settings(session)["trainer"]["callbacks"]
    assert stays["class_path"] == "test_finders.Stays"
    assert "config_1.yaml" in names(session)  # as it was asked for
    assert not any("lr_find" in name for name in names(session))
    # The search has left no trace: neither weights nor optimiser, schedule, samples, rows.
    assert run("fit", "--config", session / "config.yaml")[0] == 0
    [again] = set(sessions()) - {session}
    assert same(result(session), result(again))


def test_a_run_that_goes_on_does_not_search_again(run, config, sessions):
    assert run("fit", "--config", config, *SHORT, *LR)[0] == 0
    [session] = sessions()
    found = of_model(session)["learning_rate"]
    flags = ("--trainer.max_steps=9", "--model.learning_rate=0.02", *LR)
    code, out, err = run("fit", "--ckpt_path", session, *flags)
    assert code == 0, err
    assert f"LearningRateFinder does not search again: model.learning_rate is {found}\n" in out
    assert of_model(session)["learning_rate"] == found
    assert "Changed optimiser settings" not in out


def test_a_batch_size_that_was_found_is_that_of_the_run(run, config, sessions):
    code, out, err = run("fit", "--config", config, *SHORT, *BATCH)
    assert code == 0, err
    found = settings(sessions()[0])["data"]["init_args"]["batch_size"]
    assert f"BatchSizeFinder: data.batch_size: 4 -> {found}\n" in out
    loops = torch.load(sessions()[0] / "checkpoints/last.ckpt")["loops"]
    [loader] = loops["fit_loop"]["state_dict"]["combined_loader"]
    assert loader["batch_size"] == found != 4


def test_what_is_found_and_not_wanted_is_only_told(run, config, sessions):
    flags = (*SHORT, *LR, "--trainer.callbacks.update_attr=false")
    code, out, err = run("fit", "--config", config, *flags)
    assert code == 0, err
    assert "; model.learning_rate stays 0.01 (`update_attr`)\n" in out
    assert of_model(sessions()[0])["learning_rate"] == 0.01


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--trainer.devices=2",), "`LearningRateFinder` searches with one process"),
        (("--trainer.callbacks.attr_name=speed",), "`LearningRateFinder` has no setting to find"),
    ],
)
def test_a_search_that_can_not_be_a_setting_is_refused(run, config, sessions, flags, reason):
    code, _, err = run("fit", "--config", config, *SHORT, *LR, *flags)
    assert code == 2
    assert reason in err
    assert sessions() == []


class Later(LearningRateFinder):
    def on_fit_start(self, *_):
        """Searches at epochs of its own choice."""


def test_a_search_in_the_midst_of_training_is_warned_of(run, config):
    flags = (*SHORT, "--trainer.callbacks+=test_finders.Later")
    _, _, err = run("fit", "--config", config, *flags)
    assert "warning: `Later` searches in the midst of training" in err
