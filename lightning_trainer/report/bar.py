"""EvaluationBar: a progress bar for validation, test and prediction."""

from typing import Any

import lightning.pytorch as pl
from tqdm import tqdm

from lightning_trainer.run.state import RunCallback, rule
from lightning_trainer.session.terminal import can_redraw

# As wide on each terminal of 60 columns and more, so that log.txt is the same everywhere.
_FORMAT = "{percentage:3.0f}%|{bar:16}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"


def new_bar(total: float, **options: Any) -> Any:
    """A bar of tqdm, with more options of it; asks nothing of a terminal that tells no width."""
    return tqdm(total=total, bar_format=_FORMAT, ncols=len(rule()), **options)


class EvaluationBar(RunCallback):
    """A bar over the batches of an evaluation, where a row can be drawn again.

    Lightning's own bars also count the training's batches, at a cost for each of them.
    """

    _bar: Any = None

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._start(trainer, trainer.num_val_batches)

    def on_test_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._start(trainer, trainer.num_test_batches)

    def on_predict_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._start(trainer, trainer.num_predict_batches)

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        if self._bar is not None:
            self._bar.update()

    on_test_batch_end = on_validation_batch_end
    on_predict_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, *_: Any, **__: Any) -> None:
        """Ends the bar, before the results are printed below it."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    on_test_epoch_end = on_validation_epoch_end
    on_predict_epoch_end = on_validation_epoch_end
    on_exception = on_validation_epoch_end

    def _start(self, trainer: pl.Trainer, n_batches: list[int | float]) -> None:
        if trainer.is_global_zero and can_redraw() and not trainer.progress_bar_callback:
            self._bar = new_bar(sum(n_batches))
