"""Samples that depend on more than their index and their seed."""

import random
from collections.abc import Iterator

import numpy as np
import torch

from lightning_trainer.check.findings import CannotCheck, Finding, certain, hint
from lightning_trainer.check.limits import kept_generators
from lightning_trainer.check.nested import alike, copied
from lightning_trainer.check.project import Project

_N = 16  # samples that are read several times


def find_unsteady_samples(project: Project) -> Iterator[Finding]:
    """Reads the same samples again, with the same seed and with another one."""
    modes = ("train", *project.val_modes)
    looked = [mode for mode in modes if project.has(mode) and project.size(mode) > 1]
    if not looked:
        project.dataset("train")
        raise CannotCheck("there is one sample only")
    for mode in looked:
        with kept_generators():
            yield from _look(project, mode)


def _look(project: Project, mode: str) -> Iterator[Finding]:
    indices, title = project.order(mode)[:_N], project.title(mode)
    first, second = indices[:2]
    held = project.fetch(mode, [first])
    before = copied(held)
    project.fetch(mode, [second])
    if not alike(held, before):
        yield certain(
            "buffer",
            f"{title}[{first}] changes when {title}[{second}] is read",
            "samples share one buffer: a batch holds its last sample several times",
            "return a new tensor, e.g. `buffer.clone()`",
        )
        return
    yield from _reseeded(project, mode, first, second)
    unsteady = [i for i in indices if not _read_alike(project, mode, i, i)]
    if unsteady:
        yield certain(
            "unsteady",
            f"{title}[{unsteady[0]}] differs when it is read twice with the same seed",
            "a stored sample is changed in place, or a random generator of the dataset's own is "
            "copied into each worker",
            "copy before changing; draw from torch, numpy.random or random, which are seeded",
        )
    elif mode != "train":
        yield from _augmented(project, mode, indices)


def _read_alike(project: Project, mode: str, one: int, two: int) -> bool:
    return alike(copied(project.fetch(mode, [one])), copied(project.fetch(mode, [two])))


def _reseeded(project: Project, mode: str, first: int, second: int) -> Iterator[Finding]:
    states, title = [], project.title(mode)
    for index in (first, second):
        project.fetch(mode, [index])
        states.append(
            {
                "torch": torch.get_rng_state().numpy().tobytes(),
                "numpy.random": np.random.get_state(legacy=False)["state"]["key"].tobytes(),
                "random": hash(random.getstate()),
            }
        )
    for name, state in states[0].items():
        if state == states[1][name]:
            make = certain if mode == "train" else hint  # an evaluation may be fixed in this way
            yield make(
                "reseeded",
                f"after {title}[{first}] and [{second}] `{name}` is in the same state",
                f"the dataset seeds `{name}`: all samples get the same random numbers",
                "do not seed in a dataset: each sample is seeded already",
            )


def _augmented(project: Project, mode: str, indices: list[int]) -> Iterator[Finding]:
    """A key beyond the number of samples is the same sample with another seed."""
    n = project.size(mode)
    changed = [i for i in indices if not _read_alike(project, mode, i, i + n)]
    if not changed or _targets_change(project, mode, changed[0], changed[0] + n):
        return
    yield hint(
        "augmented",
        f"{len(changed)} of {len(indices)} validation samples depend on a random seed, e.g. "
        f"{project.title(mode)}[{changed[0]}]",
        "`random_split` of one augmented dataset augments its validation part as well",
        "give the validation data a transform without randomness",
    )


def _targets_change(project: Project, mode: str, one: int, two: int) -> bool:
    """Whether the task itself is drawn, e.g. the words that are hidden."""
    _, targets = project.keys()
    first, second = (copied(project.collate(mode, [key])) for key in (one, two))
    return any(not alike(first.get(key), second.get(key)) for key in targets)
