"""Mistakes of the network, the loss and the metric, each planted in a project of the gallery."""

from typing import Any

import torch
from check_projects import (
    Kind,
    NotApplicable,
    classifies,
    extend,
    mutation,
    need,
    of_input,
    of_model,
    of_output,
    trains_by_loss,
)
from torch import nn

from lightning_trainer.check.nested import map_tensors


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
