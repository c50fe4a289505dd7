"""How many planted mistakes `check` finds in the gallery, and what it says of healthy projects.

python benchmarks/check.py                 both tables
python benchmarks/check.py mutations digits gan
python benchmarks/check.py healthy --seeds 5

A mutation puts one mistake into a project, and counts as found if a finding has the expected name.
Only the checks of that name run then; a healthy project gets all of them.
"""

import argparse
import importlib
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from common import ROOT, report, table
from torch import Tensor, nn
from torch.optim import lr_scheduler

from lightning_trainer.check.catalogue import CHECKS
from lightning_trainer.check.findings import CheckReport
from lightning_trainer.check.inspection import inspect
from lightning_trainer.check.nested import map_tensors
from lightning_trainer.start.trainer import DEFAULTS

GALLERY = ("digits", "tabular", "segmentation", "chargpt", "vae", "byol", "timeseries")
GALLERY += ("pinn", "gan", "detection")
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


def load(name: str) -> Kind:
    config = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())

    def found(part: str) -> tuple[type, dict[str, Any]]:
        place, _, attribute = config[part]["class_path"].rpartition(".")
        return getattr(importlib.import_module(place), attribute), config[part].get("init_args", {})

    (module, model_args), (data, data_args) = found("model"), found("data")
    trainer = {key: value for key, value in config["trainer"].items() if key != "callbacks"}
    return Kind(module, data, model_args, data_args, trainer)


def check(kind: Kind, names: Any = tuple(CHECKS), seed: int = 0) -> CheckReport:
    pl.seed_everything(seed, verbose=False)
    settings = {**DEFAULTS, **kind.trainer, "accelerator": "cpu", "devices": 1}
    settings |= {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(**settings)
    checks = {name: CHECKS[name] for name in CHECKS if name in names}
    return inspect(trainer, kind.module(**kind.model_args), kind.data(**kind.data_args), checks)


# Mutations ------------------------------------------------------------------------------------

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
    dimension = {"DigitsModule": 1, "SegmentationModule": 1, "GptModule": 2}
    if kind.module.__name__ not in dimension:
        raise NotApplicable
    return dimension[kind.module.__name__]


@mutation("activation/double_softmax")
def softmax(kind: Kind) -> None:
    dimension = classifies(kind)
    of_output(kind, lambda m, output: output.softmax(dimension))


@mutation("activation/nll_of_logits")
def nll_of_logits(kind: Kind) -> None:
    classifies(kind)
    extend(kind, "module", create_loss=lambda m: setattr(m, "loss_fn", nn.NLLLoss()))


@mutation("activation/bounded_logits")
def relu_after_logits(kind: Kind) -> None:
    classifies(kind)
    of_output(kind, lambda m, output: output.relu())


@mutation("mixing/mixed")
def batch_mean(kind: Kind) -> None:
    of_input(kind, lambda t: t - t.mean(0))


@mutation("mixing/mixed")
def output_standardised_by_batch(kind: Kind) -> None:
    of_output(kind, lambda m, o: map_tensors(o, lambda t: t - t.mean(0) if t.ndim else t))


@mutation("modes/dropout")
def dropout_on(kind: Kind) -> None:
    of_output(kind, lambda m, o: map_tensors(o, lambda t: nn.functional.dropout(t, 0.3)))


@mutation("modes/state")
def counts_calls(kind: Kind) -> None:
    def change(module: Any, output: Any) -> Any:
        module.n_seen = getattr(module, "n_seen", 0) + 1
        return map_tensors(output, lambda t: t + 0.1 * module.n_seen)

    of_output(kind, change)


@mutation("modes/changed", "modes/dropout")
def training_mode_in_forward(kind: Kind) -> None:
    need(kind, nn.BatchNorm1d, nn.BatchNorm2d, nn.Dropout)
    base = kind.module
    of = {"forward_model": lambda m, b: m.model.train() and base.forward_model(m, b)}
    extend(kind, "module", **of)


@mutation("modes/eval_mode")
def left_in_eval_mode(kind: Kind) -> None:
    need(kind, nn.BatchNorm1d, nn.BatchNorm2d, nn.Dropout)
    of_model(kind, lambda m: m.model.eval())


@mutation("unregistered/no_gradient")
def detached(kind: Kind) -> None:
    trains_by_loss(kind)

    def change(module: Any, output: Any) -> Any:
        last = [*module.model.parameters()][-1]
        return map_tensors(output, lambda t: t.detach() + 0 * last.sum())

    of_output(kind, change)


@mutation("unregistered/kept_in_python")
def scale_in_a_list(kind: Kind) -> None:
    trains_by_loss(kind)
    of_model(kind, lambda m: m.__dict__.update(extra=[nn.Parameter(torch.ones(()))]))
    of_output(kind, lambda m, o: map_tensors(o, lambda t: t * m.extra[0]))


@mutation("broadcast/sum")
def summed(kind: Kind) -> None:
    trains_by_loss(kind)
    base = kind.module

    def forward_loss(self: Any, batch: Any, output: Any) -> Any:
        n = self.count_examples(batch)
        return map_tensors(base.forward_loss(self, batch, output), lambda t: t * n)

    extend(kind, "module", forward_loss=forward_loss)


@mutation("metric/disagrees", "learning/not_learned")
def wrong_sign(kind: Kind) -> None:
    trains_by_loss(kind)
    base = kind.module

    def forward_loss(self: Any, batch: Any, output: Any) -> Any:
        return map_tensors(base.forward_loss(self, batch, output), lambda t: -t)

    extend(kind, "module", forward_loss=forward_loss)


@mutation("learning/ignored_input")
def zeros_in(kind: Kind) -> None:
    of_input(kind, torch.zeros_like)


@mutation("metric/swapped")
def metric_swapped(kind: Kind) -> None:
    dimension = classifies(kind)

    def update_metrics(self: Any, metrics: Any, batch: Any, output: Any) -> None:
        target = batch.get("label", batch.get("mask"))
        if target is None:
            raise NotApplicable
        metrics.update(target, output.argmax(dimension))

    extend(kind, "module", update_metrics=update_metrics)


@mutation("metric/fixed")
def metric_of_zeros(kind: Kind) -> None:
    base = kind.module

    def update_metrics(self: Any, metrics: Any, batch: Any, output: Any) -> None:
        base.update_metrics(self, metrics, batch, map_tensors(output, torch.zeros_like))

    extend(kind, "module", update_metrics=update_metrics)


@mutation("frozen/random")
def frozen(kind: Kind) -> None:
    def freeze(module: Any) -> None:
        weights = [p for p in module.model.parameters() if p.ndim > 1]
        weights[0].requires_grad_(False)

    of_model(kind, freeze)


@mutation("learning/equal_units")
def constant_weights(kind: Kind) -> None:
    of_model(kind, lambda m: [nn.init.constant_(p, 0.02) for p in m.model.parameters()])


@mutation("learning/dead", "learning/ignored_input")
def biases_far_below_zero(kind: Kind) -> None:
    need(kind, nn.ReLU)

    def change(module: Any) -> None:
        for name, weight in module.model.named_parameters():
            if name.endswith("bias"):
                nn.init.constant_(weight, -20.0)

    of_model(kind, change)


@mutation("loaded/none")
def prefix_of_names(kind: Kind) -> None:
    def change(module: Any) -> None:
        weights = {f"module.{k}": v for k, v in module.model.state_dict().items()}
        module.model.load_state_dict(weights, strict=False)

    of_model(kind, change)


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
    from lightning_trainer.base.scoring import score_direction

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


class Changed(torch.utils.data.Dataset):
    """The samples of a dataset after `change(sample, index)`."""

    def __init__(self, data: Any, change: Callable[[Any, int], Any]) -> None:
        self.data, self.change = data, change
        self.collate_fn = getattr(data, "collate_fn", None) or torch.utils.data.default_collate

    def __len__(self) -> int:
        return len(self.data)

    def raw(self, index: int) -> Any:
        if not hasattr(self.data, "get_batch"):
            return self.data[index]
        batch = self.data.get_batch(torch.tensor([index]), torch.tensor([0]))
        return {key: value[0] for key, value in batch.items()}

    def __getitem__(self, index: int) -> Any:
        return self.change(self.raw(index), index)


def of_data(
    kind: Kind, change: Callable[[Any, int], Any], modes: tuple[str, ...] = ("train", "val")
) -> None:
    base = kind.data

    def create_data(self: Any) -> None:
        base.create_data(self)
        for mode in modes:
            data = getattr(self, f"{mode}_dataset")
            if not hasattr(data, "__len__"):
                raise NotApplicable
            several = isinstance(data, dict)
            if not several:
                change(Changed(data, change).raw(0), 1)  # may be not applicable
            changed = {k: Changed(v, change) for k, v in data.items()} if several else None
            setattr(self, f"{mode}_dataset", changed or Changed(data, change))

    extend(kind, "data", create_data=create_data)


def values_of(sample: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Changes the floats of the input; NotApplicable where there are none."""
    if isinstance(sample, Tensor):
        return change(sample)
    keys = [
        key
        for key, value in sample.items()
        if key not in TARGETS and torch.as_tensor(value).is_floating_point()
    ]
    if not keys:
        raise NotApplicable
    return {**sample, **{key: change(torch.as_tensor(sample[key])) for key in keys}}


@mutation("leak/copies", "leak/same_dataset")
def validation_from_training(kind: Kind) -> None:
    base = kind.data

    def create_data(self: Any) -> None:
        base.create_data(self)
        if not hasattr(self.train_dataset, "__len__"):
            raise NotApplicable
        part = range(min(200, len(self.train_dataset) // 3))
        whole = Changed(self.train_dataset, lambda sample, _: sample)
        self.val_dataset = Changed(torch.utils.data.Subset(whole, part), lambda sample, _: sample)
        self.val_dataset.collate_fn = whole.collate_fn

    extend(kind, "data", create_data=create_data)


@mutation("relation/unrelated")
def targets_shuffled(kind: Kind) -> None:
    base = kind.data

    def create_data(self: Any) -> None:
        base.create_data(self)
        data = self.train_dataset
        if not hasattr(data, "__len__"):
            raise NotApplicable
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1)).tolist()

        def change(sample: Any, index: int) -> Any:
            keys = [k for k in TARGETS if isinstance(sample, dict) and k in sample]
            if not keys:
                raise NotApplicable
            other = self.train_dataset.raw(order[index])
            return {**sample, **{key: other[key] for key in keys}}

        self.train_dataset = Changed(data, change)

    if kind.module.__name__ in ("VaeModule", "ByolModule", "GanModule"):
        raise NotApplicable
    extend(kind, "data", create_data=create_data)


@mutation("scale/shift")
def validation_times_255(kind: Kind) -> None:
    of_data(kind, lambda sample, _: values_of(sample, lambda t: 255 * t), ("val",))


@mutation("scale/large")
def not_normalised(kind: Kind) -> None:
    of_data(kind, lambda sample, _: values_of(sample, lambda t: 255 * t))


@mutation("values/not_finite")
def nan_in_the_data(kind: Kind) -> None:
    of_data(
        kind,
        lambda s, i: values_of(s, lambda t: t * torch.nan) if i % 20 == 0 else s,
        ("train",),
    )


@mutation("samples/unsteady")
def generator_of_its_own(kind: Kind) -> None:
    generator = np.random.default_rng(0)
    of_data(kind, lambda s, _: values_of(s, lambda t: t + float(generator.normal())), ("train",))


@mutation("samples/reseeded")
def seeded_in_each_sample(kind: Kind) -> None:
    def change(sample: Any, _: int) -> Any:
        torch.manual_seed(0)
        return values_of(sample, lambda t: t + torch.randn(t.shape))

    of_data(kind, change, ("train",))


@mutation("samples/augmented")
def validation_with_noise(kind: Kind) -> None:
    of_data(kind, lambda s, _: values_of(s, lambda t: t + torch.randn(t.shape)), ("val",))


@mutation("samples/buffer")
def one_buffer(kind: Kind) -> None:
    buffers: dict[Any, Tensor] = {}

    def kept(tensor: Tensor) -> Tensor:
        buffer = buffers.setdefault(tuple(tensor.shape), torch.empty_like(tensor))
        return buffer.copy_(tensor)

    of_data(kind, lambda sample, _: values_of(sample, kept), ("train",))


# The tables -----------------------------------------------------------------------------------


def attempts(names: list[str]) -> Iterator[tuple[str, str, str]]:
    """Project, mutation, and "found", "missed: ..." or "n/a"."""
    for name in names:
        for title, (expected, change) in MUTATIONS.items():
            started_s = time.perf_counter()
            kind = load(name)
            try:
                change(kind)
                found = check(kind, {each.partition("/")[0] for each in expected})
                seen = [finding.name for finding in found.findings]
                hit = expected & {*seen}
                outcome = "found" if hit else f"missed: {', '.join(seen) or _reason(found)}"
            except NotApplicable:
                outcome = "n/a"
            except Exception as ex:  # a mutation that no run survives is no silent mistake
                outcome = f"n/a ({type(ex).__name__})"
            # A run would end with such an error: no silent mistake.
            if outcome.startswith(("missed: NotApplicable", "missed: RuntimeError")):
                outcome = "n/a"
            print(f"{name:14}{title:32}{time.perf_counter() - started_s:5.1f} s  {outcome}")
            sys.stdout.flush()
            yield name, title, outcome


def _reason(found: CheckReport) -> str:
    return "; ".join(found.unable.values())[:120] or "nothing"


def mutations(names: list[str]) -> None:
    results = [each for each in attempts(names) if not each[2].startswith("n/a")]
    rows = []
    for title in MUTATIONS:
        own = [(name, outcome) for name, of, outcome in results if of == title]
        missed = [name for name, outcome in own if outcome != "found"]
        if own:
            expected = ", ".join(sorted(MUTATIONS[title][0]))
            n_found = len(own) - len(missed)
            rows.append([title, expected, f"{n_found} of {len(own)}", ", ".join(missed) or "-"])
    n_found = sum(outcome == "found" for *_, outcome in results)
    share = f"{n_found} of {len(results)} ({n_found / max(len(results), 1):.0%})"
    rows.append(["all", "", share, ""])
    text = table(["mutation", "finding", "found by name", "missed in"], rows)
    report("check: planted mistakes", f"In {', '.join(names)}.\n\n{text}")


def healthy(names: list[str], n_seeds: int) -> None:
    rows = []
    for name in names:
        certain, hints, seconds, errors = [], [], [], []
        for seed in range(n_seeds):
            started_s = time.perf_counter()
            found = check(load(name), seed=seed)
            seconds.append(time.perf_counter() - started_s)
            certain += [f.name for f in found.findings if f.certain]
            hints += [f.name for f in found.findings if not f.certain]
            errors += [text for text in found.unable.values() if ".py:" in text]
            print(f"{name:14}seed {seed} {seconds[-1]:5.1f} s", certain, hints, errors, flush=True)
        texts = (", ".join(certain) or "-", ", ".join(hints) or "-", len(errors))
        rows.append([name, n_seeds, *texts, f"{min(seconds):.1f} to {max(seconds):.1f}"])
    head = ["project", "seeds", "certain", "hints", "checks that raised", "seconds"]
    report("check: healthy projects", table(head, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("mutations", "healthy"))
    parser.add_argument("projects", nargs="*", default=[*GALLERY])
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    names = [name for name in given.projects if Path(ROOT, f"configs/{name}.yaml").exists()]
    if given.what != "healthy":
        mutations(names)
    if given.what != "mutations":
        healthy(names, given.seeds)


if __name__ == "__main__":
    main()
