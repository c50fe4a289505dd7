"""A project may take any hook of Lightning, and any name for its own attributes."""

import pytest
from conftest import TinyData, TinyModule
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

from lightning_trainer import BaseDataModule, BaseModule

# What the layer itself does in a hook that a project replaces is the project's from then on.
OWN_WORK = {
    *("configure_model", "configure_optimizers", "forward", "lr_scheduler_step"),
    *("training_step", "validation_step", "test_step", "predict_step"),
    *("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"),
}
# Lightning's own that do something, which a project replaces at its own risk.
OF_LIGHTNING = {
    *("backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping"),
    *("transfer_batch_to_device", "on_after_batch_transfer", "on_before_batch_transfer"),
    *("on_validation_model_zero_grad", "on_validation_model_eval", "on_validation_model_train"),
    *("on_test_model_eval", "on_test_model_train", "on_predict_model_eval"),
    *("on_predict_model_train", "configure_sharded_model", "load_state_dict", "state_dict"),
}


def hooks_of(base: type) -> list[str]:
    """The hooks of Lightning that return nothing: all that a project can replace by `pass`."""
    names = [n for n in dir(base) if n.startswith(("on_", "setup", "teardown", "configure_"))]
    names += ["prepare_data", "load_state_dict", "state_dict"]
    return [n for n in names if n not in OWN_WORK | OF_LIGHTNING]


def silent(self, *args, **kwargs) -> None:
    """Replaces a hook without a call of the base's."""


class SilentModule(TinyModule):
    pass


class SilentData(TinyData):
    pass


for name in hooks_of(LightningModule):
    setattr(SilentModule, name, silent)
for name in hooks_of(LightningDataModule):
    setattr(SilentData, name, silent)


def numbers(session) -> list[str]:
    """metrics.csv without its timings."""
    rows = [row.split(",") for row in (session / "metrics.csv").read_text().splitlines()]
    kept = [i for i, name in enumerate(rows[0]) if not name.startswith("timing/")]
    return [",".join(row[i] for i in kept) for row in rows]


def test_a_project_that_replaces_every_hook_trains_goes_on_and_is_tested_as_one_that_has_none(
    run, config, sessions
):
    silent_ones = ("--model=test_overrides.SilentModule", "--data=test_overrides.SilentData")
    for flags in ((), silent_ones):
        assert run("fit", "--config", config, *flags, "--trainer.max_steps=7")[0] == 0
        session = sessions()[-1]
        for command in (("fit", "--trainer.max_steps=12"), ("test",)):
            code, _, err = run(command[0], "--ckpt_path", session, *command[1:])
            assert code == 0, err
    plain, replaced = sessions()
    assert numbers(plain) == numbers(replaced)
    assert any("test/" in name for name in numbers(plain)[0].split(","))


class NamedModule(TinyModule):
    """Takes names that a base may be thought to use for itself."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.val_loss = self.val_examples = self.results = nn.MSELoss()
        self.n_evaluated = self.train_results = self.restored_iteration = "mine"
        self.compiles = self.compile_model = self._compiles = self.run = self.session = "mine"


class NamedData(TinyData):
    def __init__(self) -> None:
        super().__init__()
        self._created = self.created = True


def test_the_base_keeps_no_names_from_a_project(run, config, sessions):
    names = ("--model=test_overrides.NamedModule", "--data=test_overrides.NamedData")
    code, _, err = run("fit", "--config", config, *names, "--trainer.max_steps=7")
    assert code == 0, err
    assert run("test", "--ckpt_path", sessions()[0])[0] == 0


@pytest.mark.parametrize("base", [BaseModule, BaseDataModule])
def test_what_the_base_keeps_for_itself_has_a_name_that_python_mangles(base):
    made = TinyModule() if base is BaseModule else TinyData()
    documented = {
        *("model", "loss_fn", "optimiser", "scheduler", "train_metrics", "val_metrics"),
        *("vis_iterations", "score_name", "score_mode", "channels_last"),
        *("batch_size", "n_workers", "pictures", "n_samples"),
    }
    above = {*vars(LightningModule()), *vars(LightningDataModule())}
    of_hyper_parameters = {"_hparams", "_hparams_initial", "_hparams_name"}
    own = {*vars(made)} - above - documented - of_hyper_parameters
    assert all(name.startswith(f"_{base.__name__}__") for name in own), own
