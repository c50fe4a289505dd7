"""Puts the predictions of several sessions beside each other, a row for each sample."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from lightning_trainer.session.door import read_bounded
from lightning_trainer.session.settings import replace_text

_MOST_BYTES = 2**30
# Columns that are of the sample, not of a run.
_OF_SAMPLE = ("index", "name", "path", "file", "filename", "id", "label")

Rows = list[dict[str, str]]


def write_beside(folders: Mapping[str, Path], output: Path) -> list[str]:
    """Joins the `predictions.csv` of folders, by label, into one; returns lines that sum up.

    A column is named after its session, e.g. "wide predicted". Where sessions have predicted
    classes, "alike" says whether all predicted the same.

    Raises:
        ValueError: If a session has no predictions, or they are not of the same samples.
        OSError: If the file can't be written.
    """
    tables = {label: _read(folder) for label, folder in folders.items()}
    first = next(iter(tables.values()))
    shared = [name for name in _OF_SAMPLE if name in first[0]]
    for label, table in tables.items():
        same = len(table) == len(first) and all(
            a.get(name) == b.get(name) for a, b in zip(first, table, strict=True) for name in shared
        )
        if not same:
            raise ValueError(
                f"the predictions of {label} are not of the samples of {next(iter(tables))}: run "
                "`predict` on both with the same data"
            )
    rows: Rows = []
    for n, sample in enumerate(first):
        row = {name: sample[name] for name in shared}
        for label, table in tables.items():
            row |= {f"{label} {k}": v for k, v in table[n].items() if k not in _OF_SAMPLE}
        predicted = [table[n]["predicted"] for table in tables.values() if "predicted" in table[n]]
        if len(predicted) > 1:
            row["alike"] = str(len({*predicted}) == 1).lower()
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_text(output, text.getvalue())
    return _sum_up(rows, tables)


def _read(folder: Path) -> Rows:
    path = folder / "predictions.csv"
    try:
        text = read_bounded(path, _MOST_BYTES).decode(errors="replace")
        rows = [*csv.DictReader(io.StringIO(text), restval="")]
    except FileNotFoundError:
        rows = []
    except (OSError, csv.Error) as ex:
        raise ValueError(f"{path} can't be read: {ex}") from None
    if not rows:
        raise ValueError(f"{folder} has no predictions: `predict --ckpt_path {folder}` makes them")
    return rows


def _sum_up(rows: Rows, tables: Mapping[str, Rows]) -> list[str]:
    lines: list[str] = []
    for label, table in tables.items():
        if {"label", "predicted"} <= table[0].keys():
            n = sum(row["label"] == row["predicted"] for row in table)
            lines.append(f"{label}: {n:,} of {len(table):,} as labelled")
    if "alike" in rows[0]:
        n = sum(row["alike"] == "true" for row in rows)
        lines.append(f"Predicted alike by all: {n:,} of {len(rows):,}")
    return lines
