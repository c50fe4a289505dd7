"""Weights that `load_state_dict(strict=False)` silently did not load."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from lightning_trainer.check.findings import Finding, certain, hint, some
from lightning_trainer.check.project import Load, Project


@contextlib.contextmanager
def watched_loads() -> Iterator[list[Load]]:
    """Notes the calls of `load_state_dict(strict=False)` while it is open."""
    loads: list[Load] = []
    load = nn.Module.load_state_dict

    def noting(
        self: nn.Module, weights: Any, strict: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        result = load(self, weights, strict, *args, **kwargs)
        if not strict:
            loads.append((type(self).__name__, len(weights), [*result.unexpected_keys]))
        return result

    nn.Module.load_state_dict = noting  # type: ignore[assignment, method-assign]
    try:
        yield loads
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]


def find_not_loaded(project: Project) -> Iterator[Finding]:
    """Looks at what `watched_loads` has noted."""
    for layer, n, unexpected in project.loads:
        if n and len(unexpected) > n / 2:
            none = len(unexpected) == n
            make = certain if none else hint
            yield make(
                "none" if none else "few",
                f"`load_state_dict(strict=False)` of a {layer} left out {len(unexpected)} of {n} "
                f"tensors: {some(unexpected)}",
                "the names have a prefix, e.g. `module.`, or are those of another network",
                "rename the keys to those of the network's `state_dict()`",
            )
