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
_UNLIKELY = 45  # bits of an input that is equal to another by copying, not by chance


def find_leak(project: Project) -> Iterator[Finding]:
    """Compares the inputs of training and validation samples, bitwise and by their distance."""
    project.dataset("train")
    looked = [mode for mode in project.val_modes if project.has(mode)]
    if not looked:
        project.dataset("val")
    for mode in looked:
        # One of several sets may be there to tell how training data does.
        is_part = project.has_several_sets and "train" in project.title(mode)
        if not is_part:
            yield from _look_for_leak(project, mode)


def _look_for_leak(project: Project, mode: str) -> Iterator[Finding]:
    if project.dataset("train").dataset is project.dataset(mode).dataset:
        make = certain if _has_labels(project) and not project.has_several_sets else hint
        yield make(
            "same_dataset",
            f"{project.title(mode)} is train_dataset",
            "both attributes were given one dataset",
            "hold samples out for validation",
        )
        return
    (train, _), (val, order) = project.stacked("train"), project.stacked(mode)
    inputs = [key for key in project.keys()[0] if key in train and key in val]
    if not inputs:  # e.g. sequences of different lengths
        yield from _raw_copies(project, mode)
        return
    counts = Counter(_digests(train, inputs).values())
    digests = _digests(val, inputs)
    if not counts or not digests:
        return
    inside = [i for i, digest in digests.items() if digest in counts]
    bits = _bits(train, val, inputs)
    unlikely = [i for i in inside if bits[i] > _UNLIKELY]
    share, share_unlikely = len(inside) / len(digests), len(unlikely) / len(digests)
    twins = sum(n for n in counts.values() if n > 1) / counts.total()  # within the training data
    if share_unlikely > 0.01 or share > 3 * twins + 0.05:
        is_certain = share_unlikely > 0.05 and not project.has_several_sets
        make = certain if is_certain else hint
        yield make(
            "copies",
            f"{share:.1%} of the samples of {project.title(mode)} have an input that train_dataset "
            f"has as well: {some(order[i] for i in inside)}",
            "the data was copied or oversampled before it was split",
            "split first, by what belongs together",
        )
    else:
        yield from _near(train, val, inputs)


def _has_labels(project: Project) -> bool:
    """Whether a target is a class: what is learned is to be the same for samples not seen."""
    inputs, targets = project.keys()
    batch = project.batch()
    values = [batch.get(key) for key in targets if key not in inputs]
    return any(isinstance(v, Tensor) and not v.is_floating_point() for v in values)


def _raw_copies(project: Project, mode: str) -> Iterator[Finding]:
    """Compares whole samples, before they are put into a batch."""
    digests: dict[str, dict[int, bytes]] = {}
    for each in ("train", mode):
        digests[each] = {}
        for index in project.order(each)[:_N_RAW]:
            parts = tensors_in(project.fetch(each, [index])).values()
            content = b"".join(part.cpu().numpy().tobytes() for part in parts)
            if any(part.numel() >= _WIDE for part in parts):  # a shorter one may be equal by chance
                digests[each][index] = hashlib.blake2b(content, digest_size=12).digest()
    if not digests["train"] or not digests[mode]:
        raise CannotCheck("the samples hold too few numbers to tell copies from chance")
    known = {*digests["train"].values()}
    inside = [index for index, digest in digests[mode].items() if digest in known]
    if len(inside) > 0.01 * len(digests[mode]):
        make = hint if project.has_several_sets else certain
        yield make(
            "copies",
            f"{len(inside)} of {len(digests[mode])} samples of {project.title(mode)} are in "
            f"train_dataset: {some(inside)}",
            "the data was copied or oversampled before it was split",
            "split first, by what belongs together",
        )


def _digests(stacked: dict[str, Tensor], keys: Sequence[str]) -> dict[int, bytes]:
    """Of the rows that are not empty, i.e. that have two different numbers in some input."""
    rows = [stacked[key].contiguous() for key in keys]
    arrays = [(t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy() for t in rows]
    flat = [row.reshape(len(row), -1) for row in rows]
    wide = [row for row in flat if row.shape[1] > 1]
    varied = [(row != row[:, :1]).any(1) for row in wide] or [torch.ones(len(rows[0])).bool()]
    return {
        i: hashlib.blake2b(b"".join(a[i].tobytes() for a in arrays), digest_size=12).digest()
        for i in torch.stack(varied).any(0).nonzero().flatten().tolist()
    }


def _bits(train: dict[str, Tensor], val: dict[str, Tensor], inputs: Sequence[str]) -> Tensor:
    """How surprising each row of `val` is, (N,): with many bits it is equal to none by chance.

    Of its numbers, each by how often the training data has it in that place, added up.
    """
    a, b = (torch.cat([_rows(s[key]).double() for key in inputs], 1) for s in (train, val))
    step = max(1, a.shape[1] // 64)
    bits = torch.zeros(len(b))
    for i in range(0, a.shape[1], step):
        known, times = a[:, i].contiguous().unique(return_counts=True)
        at = torch.searchsorted(known, b[:, i].contiguous()).clamp_max(len(known) - 1)
        seen = torch.where(known[at] == b[:, i], times[at], 1)
        bits += step * -(seen / len(a)).log2().float()
    return bits


def _near(
    train: dict[str, Tensor], val: dict[str, Tensor], inputs: Sequence[str]
) -> Iterator[Finding]:
    """Validation samples that lie nearer to a training sample than training samples do."""
    floats = [key for key in inputs if train[key].is_floating_point()]
    if not floats:
        return
    a, b = (
        torch.cat([_rows(s[key][:n]).float()[:, :4096] for key in floats], 1)
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


def _rows(values: Tensor) -> Tensor:
    """Of the samples, (N, F)."""
    return values.reshape(len(values), -1)
