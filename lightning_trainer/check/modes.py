"""Layers in the wrong mode, and evaluations that change something."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from lightning_trainer.check.findings import Finding, certain, hint, some
from lightning_trainer.check.nested import alike, tensors_in
from lightning_trainer.check.project import Project


class DropoutWatch(TorchFunctionMode):
    """Notes each dropout that is active while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.active: list[str] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if name == "scaled_dot_product_attention":
            if kwargs.get("dropout_p"):
                self.active.append(f"{name} with dropout_p={kwargs['dropout_p']}")
        elif "dropout" in name:
            p = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
            training = kwargs.get(
                "training", kwargs.get("train", args[2] if len(args) > 2 else True)
            )
            if p and training is True:
                self.active.append(f"F.{name} with p={p}")
        return function(*args, **kwargs)


def find_left_in_eval(project: Project) -> Iterator[Finding]:
    """What is to learn but starts in eval mode; needs no forward pass."""
    stuck = [
        name
        for name, layer in project.module.named_modules()
        if not project.training_modes.get(layer, True) and _acts_in_training(layer)
    ]
    if not stuck:
        return
    whole = not project.training_modes[project.module.model]
    make = certain if whole else hint
    yield make(
        "eval_mode",
        f"{len(stuck)} layers start the training in eval mode: {some(stuck)}",
        "`eval()` was called in `create_model`, e.g. by what loads the weights",
        "`self.model.train()` at its end; `requires_grad_(False)` as well for what stays frozen",
    )


def _acts_in_training(layer: nn.Module) -> bool:
    """Whether it is a norm with statistics and weights to learn, or a dropout."""
    learns = any(weight.requires_grad for weight in layer.parameters(recurse=False))
    is_dropout = type(layer).__name__.startswith("Dropout") and bool(getattr(layer, "p", 0))
    return (hasattr(layer, "running_mean") and learns) or is_dropout


def keeps_state(project: Project) -> bool:
    """Whether a batch that is evaluated twice, with the same seed, has two outputs."""
    return bool(project.once("evaluated", lambda: _evaluate_twice(project))[2])


def _evaluate_twice(project: Project) -> tuple[list[str], list[str], bool]:
    """Active dropouts, the tensors that have changed, and whether the outputs differ."""
    module = project.module

    def held() -> dict[str, Any]:
        return {**dict(module.named_parameters()), **dict(module.named_buffers())}

    with project.scratch():
        project.forward(project.batch("val", 13, 13), False, grad=False)  # may fill a cache
        before = {name: tensor.detach().clone() for name, tensor in held().items()}
        with DropoutWatch() as watch:
            one, _ = project.forward(project.batch("val"), False, seed=1, grad=False)
        two, _ = project.forward(project.batch("val"), False, seed=1, grad=False)
        changed = [name for name, tensor in held().items() if not alike(before.get(name), tensor)]
    is_exact = module.device.type == "cpu" and project.trainer.precision in ("32-true", "64-true")
    differs = not alike(tensors_in(one), tensors_in(two), 1e-5 if is_exact else 1e-2)
    return watch.active, changed, differs


def find_wrong_modes(project: Project) -> Iterator[Finding]:
    """Evaluates one batch twice, and watches dropouts, weights and buffers."""
    yield from find_left_in_eval(project)
    active, changed, differs = project.once("evaluated", lambda: _evaluate_twice(project))
    if active:
        yield certain(
            "dropout",
            f"dropout is active in evaluation: {some(dict.fromkeys(active))}",
            "a function does not know the mode of the layer that calls it",
            "`F.dropout(x, p, training=self.training)`, or an `nn.Dropout`",
        )
    if changed:
        yield certain(
            "changed",
            f"an evaluation changes {some(changed)}",
            "`train()` is called in a forward pass, or something learns from validation data",
            "leave `train()` and `eval()` to Lightning; change buffers `if self.training`",
        )
    elif differs and not active:
        yield certain(
            "state",
            "the same batch with the same seed has another output the second time",
            "the model keeps state from batch to batch, e.g. a hidden state",
            "begin anew in each `forward_model`, or draw from torch's own generator",
        )
