"""Mistakes of optimiser, schedule, score and settings, each planted in a project of the gallery."""

from collections.abc import Callable
from typing import Any

from check_projects import Kind, extend, mutation, of_optimiser
from torch import nn
from torch.optim import lr_scheduler

from lightning_trainer.base.scoring import score_direction


@mutation("optimiser/not_optimised")
def optimiser_misses_two(kind: Kind) -> None:
    def drop(module: Any) -> None:
        group = module.optimiser.param_groups[-1]
        group["params"] = group["params"][:-2] or group["params"][:1]

    of_optimiser(kind, drop)


@mutation("optimiser/twice")
def optimiser_has_one_twice(kind: Kind) -> None:
    def add(module: Any) -> None:
        group = module.optimiser.param_groups[-1]
        group["params"] = [*group["params"], group["params"][0]]

    of_optimiser(kind, add)


@mutation("optimiser/foreign")
def head_replaced(kind: Kind) -> None:
    def replace(module: Any) -> None:
        group = module.optimiser.param_groups[-1]
        group["params"] = [nn.Parameter(p.detach().clone()) for p in group["params"]]

    of_optimiser(kind, replace)


def rate(kind: Kind, factor: float) -> None:
    def change(module: Any) -> None:
        for group in module.optimiser.param_groups:
            group["lr"] *= factor
            group.pop("initial_lr", None)
        module.scheduler = None

    of_optimiser(kind, change)


@mutation("learning/rate_low")
def rate_1e_5(kind: Kind) -> None:
    rate(kind, 1e-5)


@mutation("learning/rate_high", "learning/dead", "learning/ignored_input")
def rate_1e4(kind: Kind) -> None:
    rate(kind, 1e4)


def scheduled(kind: Kind, make: Callable[[Any], Any]) -> None:
    of_optimiser(kind, lambda m: setattr(m, "scheduler", make(m.optimiser)))


@mutation("schedule/decays_early")
def decay_in_epochs(kind: Kind) -> None:
    scheduled(kind, lambda o: lr_scheduler.ExponentialLR(o, 0.9))


@mutation("schedule/rises_again")
def cosine_in_epochs(kind: Kind) -> None:
    def make(optimiser: Any) -> Any:
        for group in optimiser.param_groups:
            group.pop("initial_lr", None)
        return lr_scheduler.CosineAnnealingLR(optimiser, 30)

    scheduled(kind, make)


@mutation("schedule/warm_up")
def warm_up_of_another_run(kind: Kind) -> None:
    scheduled(kind, lambda o: lr_scheduler.LambdaLR(o, lambda i: min(1.0, (i + 1) / 100_000)))


def direction(module: Any) -> str:
    return str(score_direction(module))


@mutation("score/plateau")
def plateau_the_wrong_way(kind: Kind) -> None:
    def change(module: Any) -> None:
        mode = "min" if direction(module) == "max" else "max"
        module.scheduler = lr_scheduler.ReduceLROnPlateau(module.optimiser, mode)

    of_optimiser(kind, change)


@mutation("score/mode")
def worst_is_best(kind: Kind) -> None:
    def change(module: Any) -> None:
        module.score_mode = "min" if direction(module) == "max" else "max"

    base = kind.module

    def create_metrics(self: Any) -> None:
        base.create_metrics(self)
        change(self)

    extend(kind, "module", create_metrics=create_metrics)


@mutation("settings/validated_once")
def validated_after_the_end(kind: Kind) -> None:
    kind.trainer["val_check_interval"] = 100 * kind.trainer["max_steps"]


@mutation("settings/limited")
def limited_to_two_batches(kind: Kind) -> None:
    kind.trainer["limit_train_batches"] = 2
