"""The projects in which `benchmarks/check.py` plants mistakes, and ways to plant one."""

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from common import ROOT
from torch import Tensor

from lightning_trainer.check.catalogue import CHECKS
from lightning_trainer.check.findings import CheckReport
from lightning_trainer.check.inspection import inspect
from lightning_trainer.check.nested import map_tensors
from lightning_trainer.start.trainer import DEFAULTS

GALLERY = ("digits", "tabular", "segmentation", "chargpt", "vae", "byol", "timeseries")
GALLERY += ("pinn", "gan", "detection", "finetune")
TARGETS = ("label", "y", "mask", "target", "boxes")


class NotApplicable(Exception):  # noqa: N818
    """The project has nothing that this mutation could change."""


@dataclass
class Kind:
    """What is mutated: classes, their arguments, and the settings of the trainer."""

    module: type
    data: type
    model_args: dict[str, Any]
    data_args: dict[str, Any]
    trainer: dict[str, Any]
    callbacks: list[type]  # which the check leaves out


def load(name: str) -> Kind:
    config = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())

    def found(part: str) -> tuple[type, dict[str, Any]]:
        return resolve_name(config[part]["class_path"]), config[part].get("init_args", {})

    (module, model_args), (data, data_args) = found("model"), found("data")
    trainer = {key: value for key, value in config["trainer"].items() if key != "callbacks"}
    callbacks = config["trainer"].get("callbacks") or []
    paths = [each if isinstance(each, str) else each["class_path"] for each in callbacks]
    classes = [resolve_name(path) for path in paths]
    return Kind(module, data, model_args, data_args, trainer, classes)


def check(kind: Kind, names: Any = tuple(CHECKS), seed: int = 0) -> CheckReport:
    pl.seed_everything(seed, verbose=False)
    settings = {**DEFAULTS, **kind.trainer, "accelerator": "cpu", "devices": 1}
    settings |= {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(**settings)
    checks = {name: CHECKS[name] for name in CHECKS if name in names}
    module, data = kind.module(**kind.model_args), kind.data(**kind.data_args)
    return inspect(trainer, module, data, checks, kind.callbacks)


MUTATIONS: dict[str, tuple[set[str], Callable[[Kind], None]]] = {}


def mutation(*expected: str) -> Callable[[Callable[[Kind], None]], Callable[[Kind], None]]:
    def add(change: Callable[[Kind], None]) -> Callable[[Kind], None]:
        MUTATIONS[change.__name__] = ({*expected}, change)
        return change

    return add


def extend(kind: Kind, part: str, **hooks: Any) -> None:
    base = getattr(kind, part)
    setattr(kind, part, type(base.__name__, (base,), hooks))


def floats(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return map_tensors(value, lambda t: change(t) if t.is_floating_point() and t.ndim > 1 else t)


def trains_by_loss(kind: Kind) -> None:
    """NotApplicable to a project whose training step calls neither of the forward hooks."""
    if kind.module.__name__ == "GanModule":
        raise NotApplicable


def of_output(kind: Kind, change: Callable[[Any, Any], Any]) -> None:
    """`change(module, output)` after `forward_model`."""
    base = kind.module
    extend(kind, "module", forward_model=lambda m, b: change(m, base.forward_model(m, b)))


def of_input(kind: Kind, change: Callable[[Tensor], Tensor]) -> None:
    trains_by_loss(kind)
    base = kind.module

    def forward_model(self: Any, batch: Any) -> Any:
        inputs = [v for k, v in batch.items() if k not in TARGETS and isinstance(v, Tensor)]
        if not any(v.is_floating_point() and v.ndim > 1 for v in inputs):
            raise NotApplicable
        changed = {k: v if k in TARGETS else floats(v, change) for k, v in batch.items()}
        return base.forward_model(self, changed)

    extend(kind, "module", forward_model=forward_model)


def of_model(kind: Kind, change: Callable[[Any], None]) -> None:
    """`change(module)` after `create_model`."""
    base = kind.module

    def create_model(self: Any) -> None:
        base.create_model(self)
        change(self)

    extend(kind, "module", create_model=create_model)


def of_optimiser(kind: Kind, change: Callable[[Any], None]) -> None:
    base = kind.module

    def create_optimiser(self: Any) -> None:
        base.create_optimiser(self)
        if not isinstance(self.optimiser, torch.optim.Optimizer):
            raise NotApplicable
        change(self)

    extend(kind, "module", create_optimiser=create_optimiser)


def need(kind: Kind, *layers: type) -> None:
    """NotApplicable unless the model has such a layer, in training mode."""

    def look(self: Any) -> None:
        found = [m for m in self.model.modules() if isinstance(m, layers) and m.training]
        if not [m for m in found if getattr(m, "p", 1)]:
            raise NotApplicable

    of_model(kind, look)


def classifies(kind: Kind) -> int:
    """The dimension of the classes in the output; NotApplicable for another task."""
    dimension = {"DigitsModule": 1, "SegmentationModule": 1, "GptModule": 2, "FinetuneModule": 1}
    if kind.module.__name__ not in dimension:
        raise NotApplicable
    return dimension[kind.module.__name__]
