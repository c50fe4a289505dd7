"""The private part of Lightning's manual optimisation is still as it was read."""

import inspect

import lightning.pytorch as pl
from lightning.pytorch.loops.optimization.manual import _ManualOptimization

from lightning_trainer.internals_of_optimising import count_batches


def test_lightning_counts_the_steps_of_optimisers_in_its_loop():
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    loop = trainer.fit_loop.epoch_loop.manual_optimization
    assert type(loop) is _ManualOptimization
    source = inspect.getsource(_ManualOptimization)
    for part in (
        "lightning_optimizer._on_before_step = self._on_before_step",
        "lightning_optimizer._on_after_step = self._on_after_step",
        "self.optim_step_progress.increment_ready()",
        "self.optim_step_progress.increment_completed()",
        "return self.on_run_end()",
    ):
        assert part in source, part
    count = type(trainer.fit_loop.epoch_loop).global_step.fget
    assert "manual_optimization.optim_step_progress.total.completed" in inspect.getsource(count)


def test_steps_of_a_batch_are_counted_once_and_none_not_at_all():
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    ended = []
    count_batches(trainer, lambda outputs, stepped: ended.append(stepped) or "what is returned")
    loop = trainer.fit_loop.epoch_loop.manual_optimization
    for n_steps in (2, 0, 1):
        for _ in range(n_steps):
            loop._on_before_step()
            loop._on_after_step()
        loop._output = {"loss": n_steps}
        assert loop.on_run_end() == "what is returned"
    assert ended == [True, False, True]
    assert loop.optim_step_progress.total.completed == loop.optim_step_progress.total.ready == 2
