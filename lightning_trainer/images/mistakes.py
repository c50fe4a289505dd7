"""ShowMistakes: a classifier's confusion matrix and its most confident mistakes."""

from collections.abc import Mapping, Sequence
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

from lightning_trainer.base.results import in_training
from lightning_trainer.images.predictions import check_classified, draw_predictions
from lightning_trainer.report.loggers import warn_of_disk
from lightning_trainer.run.state import RunState
from lightning_trainer.session.door import without_link

_MOST_CLASSES_WITH_NUMBERS = 20
_BATCH, _PROCESS = 2**32, 2**56  # codes that the samples of a batch, and of a process, have
_NAMES = ("name", "path", "file", "filename", "id")  # keys of a batch that name its samples


class ShowMistakes(Callback):
    """Draws the confusion matrix and the most confident mistakes.

    After a validation with a new best score they go to TensorBoard and to `confusion_matrix.png`
    and `mistakes.png` in the session folder; after a test to `test_confusion_matrix.png` and
    `test_mistakes.png`. Costs about half a second each time. Assumes that a batch has images,
    (B, C, H, W), and labels, integers (B,), and that the output is logits, float (B, K). A label
    that is none of 0 to K - 1, as for `ignore_index`, neither counts nor is a mistake. A mistake
    has its sample's name, where a batch has "name", "path", "file" or "id", or else its number.

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
        self._mistakes: tuple[Tensor, ...] = ()  # confidences, images, labels, outputs, codes
        self._ids: list[tuple[int, Any]] = []  # of each batch: its size, and its samples' names

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._counts, self._mistakes, self._ids = None, (), []

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
        self._keep((confidences, images, labels, output, self._codes(batch, labels)))

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if in_training(trainer) and RunState.of(trainer, self).improved:
            self._show(trainer, "val", "", trainer.global_step)

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._show(trainer, "test", "test_", RunState.of(trainer, self).restored_iteration)

    def _codes(self, batch: Mapping[str, Any], labels: Tensor) -> Tensor:
        """A number for each sample of this process, of its batch and its place in that."""
        codes = torch.arange(len(labels), device=labels.device) + len(self._ids) * _BATCH
        names = next((batch[key] for key in _NAMES if key in batch), None)
        self._ids.append((len(labels), names if isinstance(names, Sequence | Tensor) else None))
        return codes

    def _told(self, rank: int, sizes: list[list[int]]) -> dict[int, str]:
        """By code, the names of the mistakes, or else their numbers in the data.

        `sizes` are those of the batches of each process, which share each global batch in order.
        """
        told = {}
        for code in self._mistakes[-1].tolist() if self._mistakes else ():
            batch, place = divmod(code % _PROCESS, _BATCH)
            names = self._ids[batch][1]
            if names is not None:
                told[code] = str(names[place].item() if isinstance(names, Tensor) else names[place])
                continue
            before = sum(sum(each[:batch]) for each in sizes)
            before += sum(sum(each[batch : batch + 1]) for each in sizes[:rank])
            told[code] = f"no. {before + place}"
        return told

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
        counts, told = self._of_all_processes(trainer)
        loggers = [log for log in trainer.loggers if isinstance(log, TensorBoardLogger)]
        if counts is None or not loggers or not trainer.is_global_zero:
            return
        classes = self.classes or getattr(trainer.datamodule, "classes", None)  # type: ignore[attr-defined]
        wrong = self._mistakes[0] >= 0
        _, images, labels, outputs, codes = (t[wrong] for t in self._mistakes)
        names = [told[code] for code in codes.tolist()]
        n, n_wrong = int(counts.sum()), int(counts.sum() - counts.trace())
        title = f"{mode}, iteration {step:,}: {n_wrong:,} of {n:,} wrong"
        if tag := RunState.of(trainer, self).settings.get("tag"):
            title = f"{tag}, {title}"
        given = (images, labels, outputs, classes, self.n_mistakes, names, title)
        figures = {
            "confusion_matrix": _draw_matrix(counts, classes, title),
            "mistakes": draw_predictions(*given),
        }
        for name, figure in figures.items():
            pixels = _render(figure)  # once for all loggers, because it takes longest
            for logger in loggers:
                _log_picture(logger, f"{mode}/{name}", f"{prefix}{name}.png", pixels, step)

    def _of_all_processes(self, trainer: pl.Trainer) -> tuple[Tensor | None, dict[int, str]]:
        """Returns the counts, (K, K), and what the mistakes are called; keeps the mistakes.

        A process may have had no batch.
        """
        counts, rank, sizes = self._counts, trainer.global_rank, [[size for size, _ in self._ids]]
        if trainer.world_size == 1:
            return counts, self._told(0, sizes)
        sizes = _gather(sizes[0])
        told = {code + rank * _PROCESS: name for code, name in self._told(rank, sizes).items()}
        own = None
        if counts is not None:
            *others, codes = (t.cpu() for t in self._mistakes)
            own = (counts.cpu(), (*others, codes + rank * _PROCESS), told)
        counts, self._mistakes = None, ()
        for part_counts, mistakes, part_told in filter(None, _gather(own)):
            counts = part_counts if counts is None else counts + part_counts
            self._keep(mistakes)
            told |= part_told
        return counts, told


def _gather(value: Any) -> list[Any]:
    """The value of each process."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts


def _draw_matrix(counts: Tensor, classes: Sequence[str] | None, title: str = "") -> Figure:
    """Each row coloured by its shares, so that rare classes are seen, with the class's recall."""
    n_classes = len(counts)
    size = min(4.5 + 0.5 * n_classes, 20)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.add_subplot()
    cells = counts.cpu().double()
    shares = (cells / cells.sum(1, keepdim=True).clamp(min=1)).numpy()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the row", shrink=0.8)
    names = [*classes] if classes else [str(k) for k in range(n_classes)]
    recalls = [f"{name}  {shares[k, k]:.0%}" for k, name in enumerate(names)]
    axes.set_xticks(range(n_classes), names, rotation=90)
    axes.set_yticks(range(n_classes), recalls)
    axes.set(xlabel="predicted class", ylabel="true class, and its recall", title=title)
    if n_classes <= _MOST_CLASSES_WITH_NUMBERS:
        for (row, column), share in np.ndenumerate(shares):
            if n := int(cells[row, column]):
                colour = "white" if share > 0.5 else "black"
                axes.text(column, row, f"{n:,}", ha="center", va="center", color=colour, fontsize=8)
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
