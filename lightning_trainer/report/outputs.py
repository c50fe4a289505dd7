"""WritePredictions: the outputs of `predict` in the session folder, and a table of them."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BasePredictionWriter

from lightning_trainer.base.data import BaseDataModule
from lightning_trainer.checkpoints.files import write_whole
from lightning_trainer.run.state import RunState
from lightning_trainer.session.settings import replace_text

Columns = dict[str, list[Any]]


class WritePredictions(BasePredictionWriter):
    """Writes `predictions.csv`, a row for each sample, and `predictions.pt`.

    The rows are what the module's `prediction_columns` gives, with the sample's number in the data
    set. With pyarrow there is `predictions.parquet` as well. `predictions.pt` has the outputs of
    all batches, a list; other processes write `predictions_rank1.pt` and so on. With
    `--predict_data PATH` the names begin with `predictions_` and the name of what is there. Where a
    session may only be read, the files are in the current folder and have the session's name.
    """

    def __init__(self, run: RunState) -> None:
        super().__init__(write_interval="batch_and_epoch")
        self.run = run
        self._columns: Columns = {}

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Lets the data module find the samples of `--predict_data`."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if stage == "predict" and self.run.predict_data:
            BaseDataModule.setup(data, stage)
            data.create_predict_data(self.run.predict_data)

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Adds the rows of a batch.

        Raises:
            ValueError: If the columns have other lengths or names than those before.
        """
        if not hasattr(pl_module, "prediction_columns"):
            return
        given = pl_module.prediction_columns(batch, prediction)
        columns = {name: _listed(values) for name, values in given.items()}
        n = len(next(iter(columns.values()), ()))
        before = len(self._columns.get("index", ()))
        index = batch_indices if len(batch_indices or ()) == n else None
        columns = {"index": [*(index or range(before, before + n))], **columns}
        lengths = {name: len(values) for name, values in columns.items()}
        is_new = bool(self._columns) and columns.keys() != self._columns.keys()
        if len({*lengths.values()}) > 1 or is_new:
            raise ValueError(
                f"`{type(pl_module).__name__}.prediction_columns` has given {lengths} values: "
                "return as many for each name, and the same names for each batch"
            )
        for name, values in columns.items():
            self._columns.setdefault(name, []).extend(values)

    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Sequence[Any],
        *_: Any,
    ) -> None:
        rank = trainer.global_rank
        name = f"predictions{_suffix(self.run.predict_data)}"
        ranked = f"{name}_rank{rank}.pt" if rank else f"{name}.pt"
        folder, prefix = self.run.session.path, ""
        try:
            write_whole(predictions, folder / ranked)
        except OSError:
            if not self.run.is_guest:
                raise
            folder, prefix = Path(), f"{folder.absolute().name}_"
            write_whole(predictions, folder / f"{prefix}{ranked}")
        print(f"Predictions saved to: {folder / f'{prefix}{ranked}'}", flush=True)
        table = _sorted(_joined(self.run.processes.gather(self._columns)))
        self._columns = {}
        if trainer.is_global_zero and len(table) > 1:  # more than the index
            path = folder / f"{prefix}{name}.csv"
            replace_text(path, _as_csv(table))
            print(f"Table saved to: {path}{_write_parquet(table, path)}", flush=True)


def _listed(values: Any) -> list[Any]:
    """The values of a column, those of tensors and arrays as numbers of Python."""
    values = values.tolist() if hasattr(values, "tolist") else values
    return [value.tolist() if hasattr(value, "tolist") else value for value in values]


def _suffix(data: str | None) -> str:
    return f"_{re.sub(r'[^A-Za-z0-9.-]', '_', Path(data).absolute().name)}" if data else ""


def _joined(parts: Sequence[Columns]) -> Columns:
    names = next((part.keys() for part in parts if part), ())
    return {name: [value for part in parts for value in part.get(name, ())] for name in names}


def _sorted(table: Columns) -> Columns:
    """In the order of the data set, which several processes share out among them."""
    order = sorted(range(len(table.get("index", ()))), key=lambda n: table["index"][n])
    return {name: [values[n] for n in order] for name, values in table.items()}


def _as_csv(table: Mapping[str, Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    columns = [[_shown(value) for value in values] for values in table.values()]
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue()


def _shown(value: Any) -> Any:
    """Numbers with six digits: predictions.pt and the Parquet file have all of them."""
    return f"{value:.6g}" if isinstance(value, float) else value


def _write_parquet(table: Mapping[str, Sequence[Any]], path: Path) -> str:
    """Writes it beside the CSV where pyarrow is installed; returns what to say of it."""
    try:
        import pyarrow
        from pyarrow.parquet import write_table
    except ImportError:
        return ""
    part = path.with_suffix(".parquet.tmp")
    try:
        write_table(pyarrow.table(dict(table)), part)
    except pyarrow.ArrowException as ex:  # e.g. of texts and numbers in one column
        return f" (not as Parquet: {ex})"
    part.replace(path.with_suffix(".parquet"))
    return f" and {path.with_suffix('.parquet').name}"
