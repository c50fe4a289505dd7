"""The private parts of autograd's graphs and of Lightning's transfer are as they were."""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from conftest import TinyData, TinyModule

from lightning_trainer.internals_of_graphs import result_shape, saved_value, to_device


def test_a_node_tells_what_it_has_saved_and_its_shape():
    logits, target = torch.randn(5, 3, requires_grad=True), torch.tensor([0, 1, 2, -100, 1])
    nll = F.cross_entropy(logits, target).grad_fn
    assert saved_value(nll, "target").tolist() == target.tolist()
    assert saved_value(nll, "ignore_index") == -100
    assert saved_value(nll, "self").shape == (5, 3)
    assert result_shape(nll) == ()
    softmax = logits.softmax(-1).grad_fn
    assert saved_value(softmax, "dim") in (-1, 1)
    assert result_shape(softmax) == (5, 3)
    assert saved_value(softmax, "nothing") is None


class Transfers(TinyModule):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "before": torch.ones(())}

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "after": batch["before"] + 1}


def test_a_batch_goes_through_the_hooks_of_its_transfer():
    batches = []

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            batches.append(to_device(trainer, {"x": torch.zeros(2, 4)}))

    trainer = pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[Look()],
    )
    trainer.fit(Transfers(), TinyData())
    [batch] = batches
    assert batch["after"] == 2 and batch["x"].shape == (2, 4)
