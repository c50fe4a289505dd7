"""What is frozen in training is so after a restart."""

import pytest
import torch
from conftest import TinyModule
from restarts import copy_at, result, same
from torch import nn

THAW = (
    "--model=test_trainable.FineTuned",
    "--trainer.callbacks=lightning.pytorch.callbacks.BackboneFinetuning",
    "--trainer.callbacks.unfreeze_backbone_at_epoch=1",
    "--save_minutes=0",
)


class FineTuned(TinyModule):
    """A backbone that a callback thaws, and a head."""

    def __init__(self, frozen: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU())

    def create_model(self) -> None:
        self.model = nn.Linear(8, 2)
        if self.hparams.frozen:
            self.backbone.requires_grad_(False)

    def create_optimiser(self) -> None:
        trained = [p for p in self.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(trained, 1e-2)

    def forward_model(self, batch):
        return self.model(self.backbone(batch["x"]))


@pytest.mark.long
def test_a_backbone_that_was_thawed_is_trained_after_a_restart(
    run, config, sessions, monkeypatch, tmp_path
):
    with monkeypatch.context() as patch:
        copy_at(patch, "on_train_batch_end", (3, 9), tmp_path / "killed")
        code, _, err = run("fit", "--config", config, *THAW)
        assert code == 0, err
    for n in (3, 9):
        code, _, err = run("fit", "--ckpt_path", tmp_path / "killed" / str(n))
        assert code == 0, err
        assert same(result(tmp_path / "killed" / str(n)), result(sessions()[0])), n


class AllInOptimiser(FineTuned):
    def create_optimiser(self) -> None:
        self.optimiser = torch.optim.Adam(self.parameters(), 1e-2)


def test_a_setting_that_freezes_wins_over_the_checkpoint(run, config, sessions):
    flags = ("--model=test_trainable.AllInOptimiser", "--trainer.max_steps=5")
    assert run("fit", "--config", config, *flags)[0] == 0

    def backbone() -> torch.Tensor:
        last = torch.load(sessions()[0] / "checkpoints/last.ckpt")
        return last["state_dict"]["backbone.0.weight"]

    for n, flags, moves in ((7, [], True), (9, ["--model.frozen=true"], False)):
        before = backbone()
        code, _, err = run("fit", "--ckpt_path", sessions()[0], f"--trainer.max_steps={n}", *flags)
        assert code == 0, err
        assert torch.equal(backbone(), before) is not moves
