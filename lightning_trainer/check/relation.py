"""Targets that the inputs tell nothing about."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_trainer.check.findings import CannotCheck, Finding, hint
from lightning_trainer.check.ideal import constant_loss
from lightning_trainer.check.limits import Patience
from lightning_trainer.check.memorising import highest_rate, peak_rate
from lightning_trainer.check.nested import copied
from lightning_trainer.check.project import Project

_STEPS, _LEAST_STEPS, _LIMIT_S = 400, 200, 8.0
_N, _WIDTH = 1500, 4096  # samples and numbers a sample, of which neighbours are looked for


def find_no_relation(project: Project) -> Iterator[Finding]:
    """Compares nearest neighbours, then trains shortly: a constant output must be worse."""
    project.need_own_step()
    if project.size("val") < 50 or not project.size("train"):
        raise CannotCheck("there are fewer than 50 validation samples with an index")
    if project.once("progress", lambda: 1.0) < 0.3:
        raise CannotCheck("not even one batch is learned, see `learning`")
    agreement = _agreement_of_neighbours(project)
    if agreement is None:  # a short training alone proves too little
        raise CannotCheck("no target is one number a sample, beside inputs of one shape")
    if agreement[1] > 3:
        return
    trained = _train(project)
    if trained is None:
        return
    n, best, constant = trained
    worse = best > 0.99 * constant if constant > 0 else best > constant
    if worse:
        near = f"; neighbours' targets agree to {agreement[0]:.3f}, as by chance"
        yield hint(
            "unrelated",
            f"after {n} iterations the loss on validation data was at best {best:.4g}, a constant "
            f"output has {constant:.4g}{near}",
            "inputs and targets are those of different samples, e.g. by two shuffles",
            "compare some samples with their targets by eye",
        )


def _agreement_of_neighbours(project: Project) -> tuple[float, float] | None:
    """How far the targets of nearest neighbours agree, and that in standard deviations."""
    inputs, targets = project.keys()
    stacked, _ = project.stacked("train")
    for key in targets:
        y = stacked.get(key)
        if y is None or key in inputs or y.numel() != len(y) or len(y) < 100:
            continue
        wide = [stacked[k][:_N].float() for k in inputs if k in stacked and stacked[k].ndim > 1]
        if not wide:
            continue
        x = torch.cat([part.flatten(1)[:, :_WIDTH] for part in wide], 1)
        if bool(x.isfinite().all()):
            x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
            return _compare_nearest(x, y.flatten()[:_N])
    return None


def _compare_nearest(x: Tensor, y: Tensor) -> tuple[float, float]:
    distance = torch.cdist(x, x)
    distance.fill_diagonal_(math.inf)
    near = y[distance.argmin(1)]
    if y.is_floating_point():
        a, b = y - y.mean(), near - y.mean()
        r = ((a * b).mean() / (a.std() * b.std()).clamp_min(1e-12)).item()
        return r, r * math.sqrt(len(y))
    agree = (y == near).float().mean().item()
    chance = sum((y == label).float().mean().item() ** 2 for label in y.unique())
    deviation = math.sqrt(chance * (1 - chance) / len(y))
    return agree, (agree - chance) / max(deviation, 1e-9)


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
        best, patience, done = loss.item(), Patience(_LIMIT_S), 0
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
    batch: Any = project.next_batch(order[start : start + size])
    _, loss = project.forward(batch, seed=i)
    for optimiser in project.optimisers:
        optimiser.zero_grad()
    loss.backward()
    for optimiser in project.optimisers:
        optimiser.step()
