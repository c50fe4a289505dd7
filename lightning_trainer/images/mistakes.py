"""ShowMistakes: a classifier's confusion matrix and its most confident mistakes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.utilities.plot import plot_confusion_matrix

from lightning_trainer.base.results import in_training
from lightning_trainer.images.predictions import check_classified, draw_predictions
from lightning_trainer.report.loggers import warn_of_disk
from lightning_trainer.run.state import RunState
from lightning_trainer.session.door import without_link

_MOST_CLASSES_WITH_NUMBERS = 20


class ShowMistakes(Callback):
    """Draws the confusion matrix and the most confident mistakes.

    After a validation with a new best score they go to TensorBoard and to `confusion_matrix.png`
    and `mistakes.png` in the session folder; after a test to `test_confusion_matrix.png` and
    `test_mistakes.png`. Costs about half a second each time. Assumes that a batch has images,
    (B, C, H, W), and labels, integers (B,), and that the output is logits, float (B, K). A label
    that is none of 0 to K - 1, as for `ignore_index`, neither counts nor is a mistake.

    Args:
        image_key: Of the images in a batch.
        label_key: Of the labels in a batch.
        classes: Names of the classes; by default `classes` of the data module, else numbers.
        n_mistakes: Number of mistakes that are shown.
    """

    def __init__(
        self,
        image_key: str = "image",
        label_key: str = "label",
        classes: list[str] | None = None,
        n_mistakes: int = 16,
    ) -> None:
        self.image_key, self.label_key = image_key, label_key
        self.classes = classes
        self.n_mistakes = n_mistakes
        self._counts: Tensor | None = None  # (K, K)
        self._mistakes: tuple[Tensor, ...] = ()  # confidences, images, labels, outputs

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._counts, self._mistakes = None, ()

    on_test_start = on_validation_start

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Adds a batch; raises a ValueError if the batch or the output is not as assumed."""
        output = outputs.get("output") if isinstance(outputs, Mapping) else None
        self._check(batch, output)
        output = output.detach()  # type: ignore[union-attr]
        images, labels = batch[self.image_key], batch[self.label_key].long()
        predicted, n_classes = output.argmax(1), output.shape[1]
        counted = (labels >= 0) & (labels < n_classes)
        if self._counts is None:
            self._counts = labels.new_zeros(n_classes, n_classes)
        # Neither this nor the choice below waits for the device, as `bincount` and masks do.
        cells = torch.where(counted, labels * n_classes + predicted, 0)
        self._counts.view(-1).index_add_(0, cells, counted.long())
        is_mistake = counted & (predicted != labels)
        confidences = torch.where(is_mistake, output.float().softmax(1).amax(1), -1.0)
        self._keep((confidences, images, labels, output))

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if in_training(trainer) and RunState.of(trainer, self).improved:
            self._show(trainer, "val", "", trainer.global_step)

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._show(trainer, "test", "test_", RunState.of(trainer, self).restored_iteration)

    def _check(self, batch: Any, output: Any) -> None:
        remove = "remove it from `trainer.callbacks`"
        has = f"has {sorted(map(str, batch))}" if isinstance(batch, Mapping) else "is no dict"
        for key, option in ((self.image_key, "image_key"), (self.label_key, "label_key")):
            if not isinstance(batch, Mapping) or key not in batch:
                raise ValueError(
                    f"`ShowMistakes` finds no {key!r} in a batch, which {has}: give its "
                    f"`{option}`, or {remove}"
                )
        images, labels = batch[self.image_key], batch[self.label_key]
        check_classified("ShowMistakes", images, labels, output, remove)

    def _keep(self, more: tuple[Tensor, ...]) -> None:
        """Adds mistakes, and keeps the most confident of all."""
        if self._mistakes:
            more = tuple(torch.cat(pair) for pair in zip(self._mistakes, more, strict=True))
        first = more[0].topk(min(self.n_mistakes, len(more[0]))).indices
        self._mistakes = tuple(t[first] for t in more)

    def _show(self, trainer: pl.Trainer, mode: str, prefix: str, step: int) -> None:
        counts = self._of_all_processes(trainer)
        loggers = [log for log in trainer.loggers if isinstance(log, TensorBoardLogger)]
        if counts is None or not loggers or not trainer.is_global_zero:
            return
        classes = self.classes or getattr(trainer.datamodule, "classes", None)  # type: ignore[attr-defined]
        wrong = self._mistakes[0] >= 0
        _, images, labels, outputs = (t[wrong] for t in self._mistakes)
        figures = {
            "confusion_matrix": _draw_matrix(counts, classes),
            "mistakes": draw_predictions(images, labels, outputs, classes, self.n_mistakes),
        }
        n, n_wrong = int(counts.sum()), int(counts.sum() - counts.trace())
        for name, figure in figures.items():
            figure.suptitle(f"{mode}, iteration {step}: {n_wrong:,} of {n:,} wrong")
            pixels = _render(figure)  # once for all loggers, because it takes longest
            for logger in loggers:
                _log_picture(logger, f"{mode}/{name}", f"{prefix}{name}.png", pixels, step)

    def _of_all_processes(self, trainer: pl.Trainer) -> Tensor | None:
        """Returns the counts, (K, K), and keeps the mistakes; a process may have had no batch."""
        counts = self._counts
        if trainer.world_size == 1:
            return counts
        parts: list[Any] = [None] * trainer.world_size
        own = (counts.cpu(), tuple(t.cpu() for t in self._mistakes)) if counts is not None else None
        dist.all_gather_object(parts, own)
        counts, self._mistakes = None, ()
        for part_counts, mistakes in filter(None, parts):
            counts = part_counts if counts is None else counts + part_counts
            self._keep(mistakes)
        return counts


def _draw_matrix(counts: Tensor, classes: list[str] | None) -> Figure:
    size = min(4 + 0.5 * len(counts), 20)
    figure = Figure(figsize=(size, size), layout="constrained")
    plot_confusion_matrix(
        counts.cpu(),
        ax=figure.add_subplot(),
        add_text=len(counts) <= _MOST_CLASSES_WITH_NUMBERS,
        labels=[*classes] if classes else None,
        cmap="Blues",
    )
    return figure


def _render(figure: Figure) -> NDArray[Any]:
    """The figure's pixels, uint8 (H, W, 3)."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _log_picture(
    logger: TensorBoardLogger, tag: str, name: str, pixels: NDArray[Any], step: int
) -> None:
    path = Path(logger.save_dir, name)
    try:
        part = without_link(path.with_name(f"{name}.tmp"))
        imsave(part, pixels, format="png")
        part.replace(path)
        logger.experiment.add_image(tag, pixels, step, dataformats="HWC")
    except OSError as ex:
        warn_of_disk(path, ex)
