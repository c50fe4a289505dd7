"""Training samples among the validation samples."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_trainer.check.findings import CannotCheck, Finding, certain, hint, some
from lightning_trainer.check.nested import tensors_in
from lightning_trainer.check.project import Project

_N_RAW = 2000  # samples of different shapes that are compared
_WIDE = 16  # numbers in an input: distances to neighbours are alike in so many dimensions
_UNLIKELY = 32  # numbers in an input: so many are equal by copying, not by chance


def find_leak(project: Project) -> Iterator[Finding]:
    """Compares the inputs of training and validation samples, bitwise and by their distance."""
    if project.dataset("train").dataset is project.dataset("val").dataset:
        yield certain(
            "same_dataset",
            "val_dataset is train_dataset",
            "both attributes were given one dataset",
            "hold samples out for validation",
        )
        return
    (train, _), (val, order) = project.stacked("train"), project.stacked("val")
    inputs = [key for key in project.keys()[0] if key in train and key in val]
    if not inputs:  # e.g. sequences of different lengths
        yield from _raw_copies(project)
        return
    counts = Counter(_digests(train, inputs))
    inside = [order[i] for i, d in enumerate(_digests(val, inputs)) if d in counts]
    share = len(inside) / len(order)
    twins = sum(n for n in counts.values() if n > 1) / counts.total()  # within the training data
    unlikely, varied = _is_rich(train, inputs)
    if share > 0.01 and varied and (unlikely or share > 3 * twins + 0.05):
        make = certain if share > 0.05 and unlikely else hint
        yield make(
            "copies",
            f"{share:.1%} of the samples of val_dataset have an input that train_dataset has as "
            f"well: val_dataset[{some(inside)}]",
            "the data was copied or oversampled before it was split",
            "split first, by what belongs together",
        )
    else:
        yield from _near(train, val, inputs)


def _raw_copies(project: Project) -> Iterator[Finding]:
    """Compares whole samples, before they are put into a batch."""
    digests: dict[str, dict[int, bytes]] = {}
    for mode in ("train", "val"):
        digests[mode] = {}
        for index in project.order(mode)[:_N_RAW]:
            parts = tensors_in(project.fetch(mode, [index])).values()
            content = b"".join(part.cpu().numpy().tobytes() for part in parts)
            if any(part.numel() >= _WIDE for part in parts):  # a shorter one may be equal by chance
                digests[mode][index] = hashlib.blake2b(content, digest_size=12).digest()
    if not digests["train"] or not digests["val"]:
        raise CannotCheck("the samples hold too few numbers to tell copies from chance")
    known = {*digests["train"].values()}
    inside = [index for index, digest in digests["val"].items() if digest in known]
    if len(inside) > 0.01 * len(digests["val"]):
        yield certain(
            "copies",
            f"{len(inside)} of {len(digests['val'])} samples of val_dataset are in train_dataset: "
            f"val_dataset[{some(inside)}]",
            "the data was copied or oversampled before it was split",
            "split first, by what belongs together",
        )


def _digests(stacked: dict[str, Tensor], keys: Sequence[str]) -> list[bytes]:
    rows = [stacked[key].contiguous() for key in keys]
    arrays = [(t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy() for t in rows]
    return [
        hashlib.blake2b(b"".join(array[i].tobytes() for array in arrays), digest_size=12).digest()
        for i in range(len(rows[0]))
    ]


def _is_rich(train: dict[str, Tensor], inputs: Sequence[str]) -> tuple[bool, bool]:
    """Whether two inputs are hardly equal by chance, and whether most are not constant."""
    flat = torch.cat([_rows(train[key], 2000).double() for key in inputs], 1)
    columns = range(0, flat.shape[1], max(1, flat.shape[1] // 64))
    distinct = max(len(flat[:, i].unique()) for i in columns)
    varied = flat.shape[1] < 2 or bool(flat.std(1).gt(0).float().mean() > 0.5)
    return flat.shape[1] >= _UNLIKELY or distinct > 0.3 * len(flat), varied


def _near(
    train: dict[str, Tensor], val: dict[str, Tensor], inputs: Sequence[str]
) -> Iterator[Finding]:
    """Validation samples that lie nearer to a training sample than training samples do."""
    floats = [key for key in inputs if train[key].is_floating_point()]
    if not floats:
        return
    a, b = (
        torch.cat([_rows(s[key], n).float()[:, :4096] for key in floats], 1)
        for s, n in ((train, 3000), (val, 300))
    )
    if a.shape[1] != b.shape[1] or a.shape[1] < 4 or len(a) < 100 or len(b) < 20:
        return
    if not bool(a.isfinite().all() & b.isfinite().all()):
        return
    among, across = torch.cdist(a[:300], a), torch.cdist(b, a)
    among.fill_diagonal_(torch.inf)
    own, other = among.min(1).values, across.topk(10, largest=False).values
    limit = 0.5 * own.median()
    share, usual = ((d < limit).float().mean().item() for d in (other[:, 0], own))
    if a.shape[1] >= _WIDE:  # where the nearest ten are about as far away, without variants
        alone = (other[:, 0] < 0.3 * other[:, -1]).float().mean().item()
        share, usual = (alone, 0.0) if alone > share else (share, usual)
    if share > 0.2 and share > 3 * usual:
        yield hint(
            "near",
            f"{share:.0%} of the validation samples are far nearer to one training sample than is "
            "usual among these samples",
            "variants of one sample were made before the data was split",
            "split first, then make variants of the training part",
        )


def _rows(values: Tensor, n: int) -> Tensor:
    """The first n samples, (n, F)."""
    return values[:n].reshape(min(n, len(values)), -1)
