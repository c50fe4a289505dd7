"""Targets that the inputs tell nothing about."""

import math
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_trainer.check.findings import CannotCheck, Finding, hint
from lightning_trainer.check.ideal import constant_loss
from lightning_trainer.check.memorising import highest_rate, peak_rate
from lightning_trainer.check.nested import copied
from lightning_trainer.check.project import Project

_STEPS, _LEAST_STEPS, _LIMIT_S = 400, 200, 8.0
_N, _WIDTH = 1500, 4096  # samples and numbers a sample, of which neighbours are looked for
_N_PERMUTATIONS = 20  # random pairs for each sample


def find_no_relation(project: Project) -> Iterator[Finding]:
    """Compares nearest neighbours, then trains shortly: a constant output must be worse."""
    project.need_usual_step()
    if project.size("val") < 50 or not project.size("train"):
        raise CannotCheck("there are fewer than 50 validation samples with an index")
    if project.once("progress", lambda: 1.0) < 0.3:
        raise CannotCheck("not even one batch is learned, see `learning`")
    agreement = _agreement_of_neighbours(project)
    if agreement is None:  # a short training alone proves too little
        raise CannotCheck("inputs, or targets, have different shapes, or there are few of them")
    if agreement > 3:
        return
    trained = _train(project)
    if trained is None:
        return
    n, best, constant = trained
    worse = best > 0.99 * constant if constant > 0 else best > constant
    if worse:
        yield hint(
            "unrelated",
            f"after {n} iterations the loss on validation data was at best {best:.4g}, a constant "
            f"output has {constant:.4g}; the targets of similar inputs are as far apart as others",
            "inputs and targets are those of different samples, e.g. by two shuffles",
            "compare some samples with their targets by eye",
        )


def _agreement_of_neighbours(project: Project) -> float | None:
    """How much nearer than by chance the targets of nearest neighbours are, in deviations."""
    inputs, targets = project.keys()
    stacked, _ = project.stacked("train")
    wide = [stacked[k][:_N].float() for k in inputs if k in stacked and stacked[k].ndim > 1]
    own = [stacked[k][:_N] for k in targets if k in stacked and k not in inputs]
    if not wide or not own or len(own[0]) < 100:
        return None
    x = torch.cat([part.flatten(1)[:, :_WIDTH] for part in wide], 1)
    if not bool(x.isfinite().all()):
        return None
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    return max(_compare_nearest(x, y.reshape(len(y), -1)[:, :_WIDTH]) for y in own)


def _compare_nearest(x: Tensor, y: Tensor) -> float:
    """Of targets (N, M): the distances of neighbours against those of random pairs."""
    distance = torch.cdist(x, x)
    distance.fill_diagonal_(math.inf)
    near = distance.argmin(1)

    def apart(order: Tensor) -> float:
        if y.is_floating_point():
            return float((y - y[order]).square().nan_to_num(0.0).mean())
        return float((y != y[order]).float().mean())

    generator = torch.Generator().manual_seed(0)
    by_chance = [
        apart(near[torch.randperm(len(y), generator=generator)]) for _ in range(_N_PERMUTATIONS)
    ]
    spread = max(statistics.stdev(by_chance), 1e-12)
    return (statistics.mean(by_chance) - apart(near)) / spread


def _train(project: Project) -> tuple[int, float, float] | None:
    """Trains for a few seconds: iterations, best loss on validation data, that of a constant.

    None if the constant is not known, or if too few iterations were done to say anything.
    """
    val = project.batch("val", min(256, project.size("val")))
    size = min(int(project.data.batch_size), project.size("train"))
    with project.scratch():
        output, loss = project.forward(copied(val), training=False)
        constant = None if loss is None else constant_loss(project, copied(val), output)
        if constant is None:
            return None
        factor = peak_rate(project) / max(highest_rate(project), 1e-30)
        for group in project.groups:
            group["lr"] = group["lr"] * factor
        best, patience, done = loss.item(), project.patience(_LIMIT_S), 0
        while not patience.is_over and done < _STEPS:
            _step(project, done, size)
            done += 1
            if done % 25 == 0:
                _, loss = project.forward(copied(val), training=False, grad=False)
                best = min(best, loss.item())
    return (done, best, constant) if done >= _LEAST_STEPS else None


def _step(project: Project, i: int, size: int) -> None:
    n = project.size("train")
    generator = torch.Generator().manual_seed(i * size // n)
    order = torch.randperm(n, generator=generator).tolist()
    start = i * size % max(1, n - size + 1)
    batch: Any = project.batch_of("train", order[start : start + size])
    project.step(batch, seed=i)
