"""What Lightning does in each step for nothing, left out."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import PassThroughProfiler

_NOTHING: Any = contextlib.nullcontext()
_EACH_BATCH = [
    name
    for name in dir(Callback)
    if name.startswith(("on_before_", "on_after_")) or "_batch_" in name
]


class NoProfiler(PassThroughProfiler):
    """Measures nothing, as Lightning's default does, without a generator for each hook."""

    def profile(self, action_name: str) -> Any:
        """A context that does nothing."""
        return _NOTHING


def skip_empty_hooks(callbacks: Iterable[Callback]) -> None:
    """Keeps Lightning from calling the hooks of each batch that a callback does not have.

    A call costs 2 to 3 us: some 20 callbacks times 6 hooks are more than the step of a small
    model. Private to Lightning: it passes over a hook that can't be called.
    """
    for callback in callbacks:
        for name in _EACH_BATCH:
            # Lightning's LambdaCallback has its hooks in the instance.
            inherited = getattr(type(callback), name) is getattr(Callback, name)
            if inherited and name not in vars(callback):
                setattr(callback, name, None)


@contextlib.contextmanager
def without_asking_for_gpus() -> Iterator[None]:
    """Says that there is no GPU where there is none.

    Else a torch that is built for CUDA tries to load NVIDIA's library in each step of an optimiser,
    at 0.1 ms.
    """
    name = "CUDA_VISIBLE_DEVICES"
    hide = name not in os.environ and not torch.cuda.device_count()
    if hide:
        os.environ[name] = ""
    try:
        yield
    finally:
        if hide:
            del os.environ[name]
