"""Values of samples and labels that can't be right."""

from collections import Counter
from collections.abc import Iterator

from torch import Tensor

from lightning_trainer.check.findings import Finding, certain, hint, some
from lightning_trainer.check.graphs import all_nodes, operation
from lightning_trainer.check.nested import tensors_in
from lightning_trainer.check.project import Project

_UNSEEN, _DISTINCT = 0.02, 0.2  # shares: of unseen labels; of different values if they are labels


def find_odd_values(project: Project) -> Iterator[Finding]:
    """Looks at all inputs and targets of many samples."""
    inputs, targets = project.keys()
    for mode in ("train", *project.val_modes):
        if mode != "train" and not project.has(mode):
            continue
        for key in sorted({*inputs, *targets}):
            yield from _not_finite(project, mode, key)
        yield from _identical(project, mode, [key for key in inputs if key not in targets])
    labels = [key for key in targets if key not in inputs]
    for key in labels:
        yield from _labels(project, key, is_only=len(labels) == 1)


def _identical(project: Project, mode: str, inputs: list[str]) -> Iterator[Finding]:
    """Inputs that are all the same; one among others, such as a mask, may be."""
    stacked, _ = project.stacked(mode)
    values = [stacked.get(key) for key in inputs]
    if not inputs or any(v is None or len(v) < 2 or bool((v != v[:1]).any()) for v in values):
        return
    names = " and ".join(f'"{key}"' for key in inputs)
    n = len(stacked[inputs[0]])
    yield certain(
        "identical",
        f"{names} is the same in all {n} samples of {project.title(mode)}",
        "`__getitem__` returns one sample whatever the index is",
        "use the index in `__getitem__`",
    )


def _not_finite(project: Project, mode: str, key: str) -> Iterator[Finding]:
    parts, order = project.many(mode)
    indices: list[int] = []
    for i, part in enumerate(parts):
        value, of_part = part.get(key), order[64 * i : 64 * (i + 1)]
        if isinstance(value, Tensor) and value.is_floating_point() and len(value) == len(of_part):
            bad = ~value.isfinite().reshape(len(value), -1).all(1)
            indices += [of_part[row] for row in bad.nonzero().flatten().tolist()]
    if indices and not _is_left_out(project, mode, indices[:8]):
        yield certain(
            "not_finite",
            f'"{key}" is not finite in {len(indices)} of {len(order)} samples of '
            f"{project.title(mode)}: {some(indices)}",
            "missing values were read as NaN, or a division by zero",
            "drop or repair these samples in `create_data`",
        )


def _is_left_out(project: Project, mode: str, indices: list[int]) -> bool:
    """Whether the loss of samples that are not finite is, with all of its gradients."""
    with project.scratch():
        others = [i for i in project.order(mode)[:26] if i not in indices]
        batch = project.batch_of(mode, indices + others[: len(indices)])
        if mode != "train":
            output, loss = project.forward(batch, training=False, grad=False)
            found = tensors_in({"output": output, "loss": loss})
        else:
            loss = project.step(batch)
            found = tensors_in({"loss": loss, **dict(project.module.named_parameters())})
        return all(bool(t.isfinite().all()) for t in found.values() if t.is_floating_point())


def _labels(project: Project, key: str, is_only: bool) -> Iterator[Finding]:
    """Looks at targets that are one number a sample."""
    found = [project.stacked(mode)[0].get(key) for mode in ("train", "val") if project.has(mode)]
    labels = [v.flatten() for v in found if v is not None and len(v) == v.numel()]
    if len(labels) < 2:
        return
    train, val = labels
    if is_only and len(train) > 1 and bool((train == train[0]).all()):
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
    if share > _UNSEEN and len(seen) < _DISTINCT * len(train) and _are_classes(project):
        make = hint if project.has_several_sets else certain
        yield make(
            "unseen_labels",
            f'"{key}" has values in val_dataset that train_dataset lacks: {some(sorted(unseen))} '
            f"({share:.0%} of its samples)",
            "the data was sorted by label, then cut",
            "shuffle before splitting, e.g. `train_test_split(..., stratify=labels)`",
        )
    k = n_outputs(project) if _are_classes(project) else 0
    if k > 2 and 0 not in seen | {*counts} and seen >= {*range(1, k)}:
        yield hint(
            "never_0",
            f'"{key}" is never 0, 1 to {k - 1} occur, and the network has {k} outputs',
            "the labels are counted from 1: one output is for a class that does not exist",
            "subtract 1 from the labels, and make one output less",
        )


def _are_classes(project: Project) -> bool:
    """Whether the loss of validation data takes targets for classes, which must be known."""

    def look() -> bool:
        with project.scratch():
            _, loss = project.forward(project.batch("val"), training=False)
        nodes = all_nodes(loss.grad_fn) if loss is not None else []
        return any(operation(node) in ("NllLoss", "NllLoss2D") for node in nodes)

    return project.once("are_classes", look)


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
