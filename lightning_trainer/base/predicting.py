"""What `predict` needs of a project: data, and columns of its table by default."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from lightning_trainer.base.batches import Batch

# Keys of a batch under which the names of its samples may be.
_NAMES = ("name", "path", "file", "filename", "id")
_MOST_COLUMNS = 20  # of probabilities or values
_PLAIN = (str, int, float, bool)


def default_columns(module: Any, batch: Batch, output: Any) -> dict[str, list[Any]]:
    """The names of the samples, their labels, and what the output says of them, B values each.

    Logits (B, K) of classes, i.e. with integer labels (B,) or `classes` of the data module, become
    the predicted class, its probability, and the probability of each of up to 20. Other tensors of
    up to 20 numbers a sample are columns as they are; so are those in a dict. Larger ones, such as
    images, are left out: predictions.pt has them.
    """
    data = getattr(module.trainer, "datamodule", None)
    classes = getattr(data, "classes", None)
    columns: dict[str, list[Any]] = {}
    given = batch if isinstance(batch, Mapping) else {}
    for key in _NAMES:
        if (values := _plain(given.get(key))) is not None:
            columns[key] = values
    label = given.get("label")
    is_class = isinstance(label, Tensor) and label.ndim == 1 and not label.is_floating_point()
    if (labels := _plain(label)) is not None:
        columns["label"] = [_named(value, classes) for value in labels] if is_class else labels
    n_given = len(columns)
    parts = output if isinstance(output, Mapping) else {"": output}
    for name, part in parts.items():
        if isinstance(part, Tensor) and part.ndim:
            prefix = f"{name}_" if name else ""
            n_classes = part.shape[1] if part.ndim == 2 and part.is_floating_point() else 0
            if n_classes > 1 and (is_class or len(classes or ()) == n_classes):
                columns |= _of_classes(part, classes, prefix)
            else:
                columns |= _of_values(part, prefix)
    lengths = [len(values) for values in columns.values()]
    lengths = lengths[n_given:] or lengths[-1:]  # of the output, where it has a column
    of_batch = {len(value) for value in given.values() if isinstance(value, Tensor) and value.ndim}
    n = next((n for n in lengths if n in of_batch), lengths[-1] if lengths else 0)
    return {name: values for name, values in columns.items() if len(values) == n}


def _of_classes(logits: Tensor, classes: Sequence[str] | None, prefix: str) -> dict[str, list[Any]]:
    probabilities = logits.float().softmax(1).cpu()
    highest, predicted = probabilities.max(1)
    columns: dict[str, list[Any]] = {
        f"{prefix}predicted": [_named(k, classes) for k in predicted.tolist()],
        f"{prefix}probability": highest.tolist(),
    }
    if probabilities.shape[1] <= _MOST_COLUMNS:
        for k, column in enumerate(probabilities.T.tolist()):
            columns[f"{prefix}p_{_named(k, classes)}"] = column
    return columns


def _of_values(values: Tensor, prefix: str) -> dict[str, list[Any]]:
    flat = values.detach().float().flatten(1) if values.ndim > 1 else values.detach()[:, None]
    if flat.shape[1] > _MOST_COLUMNS:
        return {}
    name = f"{prefix}output"
    names = [name] if flat.shape[1] == 1 else [f"{name}_{n}" for n in range(flat.shape[1])]
    return dict(zip(names, flat.T.cpu().tolist(), strict=True))


def _named(k: Any, classes: Sequence[str] | None) -> Any:
    return classes[k] if classes and 0 <= k < len(classes) else k


def _plain(values: Any) -> list[Any] | None:
    """B texts or numbers as a list; None for anything else."""
    if isinstance(values, Tensor):
        return values.tolist() if values.ndim == 1 and not torch.is_complex(values) else None
    is_plain = isinstance(values, list | tuple) and all(isinstance(v, _PLAIN) for v in values)
    return [*values] if is_plain else None


def refuse_predict_data(owner: Any, path: str) -> NoReturn:
    """Raises a ValueError for data that the project has no hook to read."""
    raise ValueError(
        f"`predict_data` is {path!r}, and `{type(owner).__name__}` does not say how to read it: "
        "let its `create_predict_data(path)` set `self.predict_dataset`"
    )
