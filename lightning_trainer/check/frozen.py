"""Frozen weights that were never loaded."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_trainer.base.sampling import seed_generators
from lightning_trainer.check.findings import CannotCheck, Finding, hint, some
from lightning_trainer.check.project import Project

_PARTS = ("_modules", "_parameters", "_buffers")
Weights = dict[str, tuple[Tensor, bool]]  # with whether they are trained


def find_frozen_random(project: Project) -> Iterator[Finding]:
    """Makes the model twice with different seeds: frozen weights that differ are random."""
    model = project.module.model
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad and p.numel() > 1]
    if not frozen:
        raise CannotCheck("no weight is frozen")
    one, two = (_made_anew(project, seed) for seed in (11, 12))
    trained = [weight for weight, is_trained in one.values() if is_trained]
    new = [
        name
        for name in frozen
        if name in one
        and name in two
        and not torch.equal(one[name][0], two[name][0])
        # A teacher begins as a copy of what is trained.
        and not any(w.shape == one[name][0].shape and torch.equal(w, one[name][0]) for w in trained)
    ]
    if new:
        yield hint(
            "random",
            f"{len(new)} parameters are frozen at random values: {some(new)}",
            "they were to be loaded, or are frozen by mistake",
            "load the weights that they should have, or train them",
        )


def _made_anew(project: Project, seed: int) -> Weights:
    """The weights that `create_model` makes with a seed; the module keeps those it has."""
    module = project.module
    attributes = vars(module).copy()
    parts = {name: dict(attributes[name]) for name in _PARTS}
    try:
        seed_generators(seed)
        module.create_model()
        named = module.model.named_parameters()
        return {name: (p.detach().clone(), p.requires_grad) for name, p in named}
    finally:
        vars(module).clear()
        vars(module).update(attributes)
        for name, part in parts.items():
            vars(module)[name].clear()
            vars(module)[name].update(part)
