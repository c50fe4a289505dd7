"""Walks through the graph that autograd keeps of a loss."""

from collections.abc import Collection
from typing import Any

# They move values without changing them.
_MOVES: tuple[str, ...] = (
    "View",
    "ReshapeAlias",
    "UnsafeView",
    "Squeeze",
    "Unsqueeze",
    "Permute",
    "Transpose",
)
_MOVES += ("TBackward", "Clone", "Slice", "Select", "ToCopy", "Index", "Alias", "Contiguous")
_MOVES += ("Split", "Unbind", "Stack", "Flatten", "Expand")


def all_nodes(end: Any, until: Collection[Any] = ()) -> list[Any]:
    """Each node once, from `end` backwards, not beyond those of `until`."""
    found: dict[Any, None] = {}
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found and node not in until:
            found[node] = None
            waiting += [before for before, _ in node.next_functions]
    return [*found]


def operation(node: Any) -> str:
    """E.g. "LogSoftmax" of torch's LogSoftmaxBackward0; empty for None."""
    return "" if node is None else str(node.name()).removesuffix("0").removesuffix("Backward")


def computed_before(node: Any) -> Any:
    """The nearest node before this one that does more than move values; None at the start."""
    before = node.next_functions[0][0] if node.next_functions else None
    while before is not None and before.name().startswith(_MOVES) and before.next_functions:
        before = before.next_functions[0][0]
    return before
