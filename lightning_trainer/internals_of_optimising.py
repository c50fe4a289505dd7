"""The private part of Lightning's manual optimisation, under the rules of internals.py."""

from collections.abc import Callable
from typing import Any


def count_batches(trainer: Any, end: Callable[[dict[str, Any], bool], Any]) -> None:
    """Counts one step a training batch, at its end, however many steps of optimisers it had.

    Lightning 2.0: `optim_step_progress` counts each step of each optimiser, by `_on_before_step`
    and `_on_after_step`, which `on_run_start` gives to the optimisers.

    Args:
        trainer: Before its first batch, of a module with manual optimisation.
        end: Gets what a batch has returned, and whether any optimiser has stepped; returns what
            callbacks get in its place.
    """
    loop = trainer.fit_loop.epoch_loop.manual_optimization
    stepped = False

    def before_step() -> None:
        trainer.profiler.start("optimizer_step")

    def after_step() -> None:
        nonlocal stepped
        stepped = True
        trainer.profiler.stop("optimizer_step")

    def on_run_end() -> Any:
        nonlocal stepped
        outputs, has_stepped = type(loop).on_run_end(loop), stepped
        stepped = False
        outputs = end(outputs, has_stepped)
        if has_stepped:
            loop.optim_step_progress.increment_ready()
            loop.optim_step_progress.increment_completed()
        return outputs

    loop._on_before_step, loop._on_after_step = before_step, after_step
    loop.on_run_end = on_run_end
