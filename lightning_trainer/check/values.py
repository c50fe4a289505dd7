"""Values of samples and labels that can't be right."""

from collections import Counter
from collections.abc import Iterator

from torch import Tensor

from lightning_trainer.check.findings import Finding, certain, hint, some
from lightning_trainer.check.nested import tensors_in
from lightning_trainer.check.project import Project

_UNSEEN, _DISTINCT = 0.02, 0.2  # shares: of unseen labels; of different values if they are labels


def find_odd_values(project: Project) -> Iterator[Finding]:
    """Looks at all inputs and targets of many samples."""
    inputs, targets = project.keys()
    for mode in ("train", "val"):
        if mode == "val" and not project.has(mode):
            continue
        for key in sorted({*inputs, *targets}):
            yield from _not_finite(project, mode, key)
        stacked, _ = project.stacked(mode)
        for key, value in stacked.items():
            differ = len(value) < 2 or bool((value != value[:1]).any())
            if key in inputs and key not in targets and not differ:
                yield certain(
                    "identical",
                    f'"{key}" is the same in all {len(value)} samples of {mode}_dataset',
                    "`__getitem__` returns one sample whatever the index is",
                    "use the index in `__getitem__`",
                )
    for key in targets:
        if key not in inputs:
            yield from _labels(project, key)


def _not_finite(project: Project, mode: str, key: str) -> Iterator[Finding]:
    parts, order = project.many(mode)
    indices: list[int] = []
    for i, part in enumerate(parts):
        value, of_part = part.get(key), order[64 * i : 64 * (i + 1)]
        if isinstance(value, Tensor) and value.is_floating_point() and len(value) == len(of_part):
            bad = ~value.isfinite().reshape(len(value), -1).all(1)
            indices += [of_part[row] for row in bad.nonzero().flatten().tolist()]
    if indices:
        yield certain(
            "not_finite",
            f'"{key}" is not finite in {len(indices)} of {len(order)} samples of {mode}_dataset: '
            f"{some(indices)}",
            "missing values were read as NaN, or a division by zero",
            "drop or repair these samples in `create_data`",
        )


def _labels(project: Project, key: str) -> Iterator[Finding]:
    """Looks at targets that are one number a sample."""
    found = [project.stacked(mode)[0].get(key) for mode in ("train", "val") if project.has(mode)]
    labels = [v.flatten() for v in found if v is not None and len(v) == v.numel()]
    if len(labels) < 2:
        return
    train, val = labels
    if len(train) > 1 and bool((train == train[0]).all()):
        yield certain(
            "one_label",
            f'"{key}" is {train[0].item():.4g} in all {len(train)} samples of train_dataset',
            "the labels are read from the wrong place",
            "look at how they are made",
        )
    elif not train.is_floating_point():
        yield from _classes(project, key, train, val)


def _classes(project: Project, key: str, train: Tensor, val: Tensor) -> Iterator[Finding]:
    seen, counts = {*train.tolist()}, Counter(val.tolist())
    unseen = {label: n for label, n in counts.items() if label not in seen}
    share = sum(unseen.values()) / len(val)
    if share > _UNSEEN and len(seen) < _DISTINCT * len(train):
        yield certain(
            "unseen_labels",
            f'"{key}" has values in val_dataset that train_dataset lacks: {some(sorted(unseen))} '
            f"({share:.0%} of its samples)",
            "the data was sorted by label, then cut",
            "shuffle before splitting, e.g. `train_test_split(..., stratify=labels)`",
        )
    k = n_outputs(project)
    if k > 2 and 0 not in seen | {*counts} and seen >= {*range(1, k)}:
        yield hint(
            "never_0",
            f'"{key}" is never 0, 1 to {k - 1} occur, and the network has {k} outputs',
            "the labels are counted from 1: one output is for a class that does not exist",
            "subtract 1 from the labels, and make one output less",
        )


def n_outputs(project: Project) -> int:
    """The K of an output (B, K); 0 if it has another form."""
    with project.scratch():
        batch = project.batch()
        output, _ = project.forward(project.batch(), training=False, grad=False)
    sizes = {len(tensor) for tensor in tensors_in(batch).values() if tensor.ndim}
    try:
        shape = output.shape
    except AttributeError:
        return 0
    return int(shape[1]) if len(shape) == 2 and shape[0] in sizes else 0
