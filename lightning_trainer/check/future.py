"""Sequences whose targets are given away, not shifted, or padding."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_trainer.check.activation import loss_graph
from lightning_trainer.check.findings import CannotCheck, Finding, certain, hint
from lightning_trainer.check.graphs import operation
from lightning_trainer.check.modes import keeps_state
from lightning_trainer.check.nested import tensors_in
from lightning_trainer.check.project import Project
from lightning_trainer.internals_of_graphs import saved_value

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)
_PADDED = 0.03  # share of padding among the targets that matters


def sequences_in(project: Project, batch: Any) -> dict[str, Tensor]:
    """The inputs that are sequences of classes, int (B, T), by their keys."""
    found: dict[str, Tensor] = {}
    for key in project.keys()[0]:
        value: Any = batch.get(key)
        is_matrix = isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] > 3
        if is_matrix and value.dtype in _INTEGERS:
            found[key] = value
    return found


def find_future(project: Project) -> Iterator[Finding]:
    """Recognises by the loss what the targets of sequences are, and changes later tokens."""
    graph = loss_graph(project)
    sequences = sequences_in(project, graph.batch)
    if not sequences:
        raise CannotCheck("no input is a sequence of integers (B, T)")
    for node in graph.nodes:
        if operation(node) in ("NllLoss", "NllLoss2D"):
            target, ignored = saved_value(node, "target"), saved_value(node, "ignore_index")
            for key, tokens in sequences.items():
                if target.numel() % len(tokens) or target.numel() // len(tokens) < 3:
                    continue
                rows = target.detach().reshape(len(tokens), -1)
                yield from _padding(project, tokens, rows, ignored)
                yield from _look_at(project, key, *_agreement(tokens, rows, ignored))


def _look_at(project: Project, key: str, here: float, ahead: float) -> Iterator[Finding]:
    """A sequence of tokens of which the targets are as many as given at, or behind, each place."""
    if ahead > 0.95 and not keeps_state(project):
        yield from _sees_next(project, key)
    elif here > 0.99 and ahead <= 0.95:
        # One that sees all of a sequence may have it as its target, as an autoencoder.
        make = hint if keeps_state(project) or _looks_ahead(project, key) else certain
        yield make(
            "not_shifted",
            f"the target equals the input at the same place in {here:.0%} of the places",
            "the target is not shifted: there is nothing to predict",
            "input `tokens[:, :-1]`, target `tokens[:, 1:]`",
        )


def _agreement(tokens: Tensor, target: Tensor, ignored: int) -> tuple[float, float]:
    """Shares of the targets that equal the token of their place, and the next one."""
    length, valid = target.shape[1], target.ne(ignored)
    if length not in (tokens.shape[1], tokens.shape[1] - 1) or valid.sum() < 10:
        return 0.0, 0.0
    short = min(length, tokens.shape[1] - 1)
    here = target.eq(tokens[:, :length])[valid].float().mean().item()
    ahead = target[:, :short].eq(tokens[:, 1 : short + 1])[valid[:, :short]].float().mean().item()
    return here, ahead


def _padding(project: Project, tokens: Tensor, target: Tensor, ignored: int) -> Iterator[Finding]:
    """Targets that are padding where the tokens are; elsewhere the number may be a class."""
    layers = [m for m in project.module.modules() if isinstance(m, nn.Embedding)]
    pads = {layer.padding_idx for layer in layers if layer.padding_idx is not None}
    length = target.shape[1]
    for pad in pads - {ignored}:
        counted = target.eq(pad)
        share = counted.float().mean().item()
        # Where the token of the same place, or the next one, is padding; a sequence's last target
        # may be the first padding.
        places = [tokens[:, at : at + length].eq(pad) for at in (0, 1)]
        others = [int((counted[:, : p.shape[1]] & ~p).sum()) for p in places]
        fits = min(others) <= len(tokens)
        if share > _PADDED and fits:
            yield certain(
                "padding",
                f"{share:.0%} of the targets are the padding {pad}, ignore_index is {ignored}",
                "padding counts in the loss, which falls by learning it",
                f"CrossEntropyLoss(ignore_index={pad})",
            )


def _sees_next(project: Project, key: str) -> Iterator[Finding]:
    change = _looks_ahead(project, key)
    if change:
        yield certain(
            "seen",
            "the targets are the next tokens, and outputs at earlier places change by "
            f"{change:.3g} when the last token of the input changes",
            "the network sees what it is to predict: attention without a mask, or layers that "
            "run in both directions",
            "mask the attention (`is_causal`, a triangular mask); leave `bidirectional` out",
        )


def _looks_ahead(project: Project, key: str) -> float:
    """How far outputs change when a later token does: changes the last one that is read."""
    batch, changed = project.batch("val", 4), project.batch("val", 4)
    tokens, others = batch[key], changed[key]
    with project.scratch():
        a = tensors_in(project.forward(batch, training=False, grad=False)[0])
        sizes = [size for x in a.values() for size in x.shape[1:] if x.is_floating_point()]
        # Where the batch has the targets as well, the network reads all but the last token.
        length = next((n for n in (tokens.shape[1], tokens.shape[1] - 1) if n in sizes), 0)
        if length < 2:
            return 0.0
        last = tokens[:, length - 1]
        others[:, length - 1] = torch.where(last == tokens[0, 0], tokens[0, 1], tokens[0, 0])
        b = tensors_in(project.forward(changed, training=False, grad=False)[0])
    for name, x in a.items():
        axes = [i for i in range(1, x.ndim) if x.shape[i] == length]
        if axes and x.is_floating_point():
            early = (x - b[name]).abs().narrow(axes[0], 0, length - 1).max().item()
            if early > 1e-3 * float(x.abs().max()):
                return float(early)
    return 0.0
