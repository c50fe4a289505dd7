"""Private parts of how Lightning calls hooks, which it does some 40 times a step.

As in `internals.py`: the private part, the reason, the version; a test fails when it changes.
"""

import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.profilers import Profiler

# Lightning 2.0: the attribute of a module that names the hook being called. Lightning sets it some
# 40 times a step, at 2 us each through `nn.Module.__setattr__`.
CURRENT_HOOK = "_current_fx_name"


def skip_empty_hooks(trainer: "pl.Trainer") -> Callable[[], None]:
    """Keeps Lightning from calling empty hooks of callbacks, at each batch and in validations.

    Lightning 2.0: `_call_callback_hooks` calls the hook of every callback, at 2 to 3 us each, also
    the empty one of their base class. Returns a function that restores it.
    """
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.trainer import call as calls

    call: Any = calls
    own: Any = trainer
    original = call._call_callback_hooks
    parts = ("on_before_", "on_after_", "_batch_")
    each_batch = {name for name in dir(Callback) if any(part in name for part in parts)}
    defined: dict[str, list[Callback]] = {}
    known: list[Callback] = []

    def call_defined(of: Any, name: str, *args: Any, **options: Any) -> None:
        module = of.lightning_module
        if of is not own or not (name in each_batch or "_validation_" in name) or not module:
            original(of, name, *args, **options)
            return
        if known != of.callbacks:  # a module may add some
            known[:] = of.callbacks
            defined.clear()
        callbacks = defined.get(name)
        if callbacks is None:
            callbacks = [callback for callback in known if defines(callback, Callback, name)]
            if name in each_batch:
                defined[name] = callbacks
        outer, profile = getattr(module, CURRENT_HOOK), of.profiler.profile
        setattr(module, CURRENT_HOOK, name)
        for callback in callbacks:
            if (hook := getattr(callback, name)) is not None:
                with profile(f"[Callback]{callback.state_key}.{name}"):
                    hook(of, module, *args, **options)
        setattr(module, CURRENT_HOOK, outer)

    call._call_callback_hooks = call_defined
    return lambda: setattr(call, "_call_callback_hooks", original)


def defines(owner: object, base: type, name: str) -> bool:
    """Whether its class has the hook of `base`, or, as Lightning's LambdaCallback, the instance."""
    return getattr(type(owner), name) is not getattr(base, name) or name in vars(owner)


def skip_hooks(callback: "Callback", names: Iterable[str]) -> None:
    """Keeps Lightning from calling these hooks of a callback, until `call_hooks`."""
    for name in names:
        setattr(callback, name, None)


def call_hooks(callback: "Callback", names: Iterable[str]) -> None:
    """Lets Lightning call these hooks of a callback again."""
    for name in names:
        vars(callback).pop(name, None)


def without_profiler() -> "Profiler":
    """A profiler that measures nothing, at a lower cost than Lightning's default.

    Lightning 2.0: `PassThroughProfiler.profile` makes a new context manager for each hook.
    """
    from lightning.pytorch.profilers import PassThroughProfiler

    profiler, nothing = PassThroughProfiler(), contextlib.nullcontext()
    vars(profiler)["profile"] = lambda _: nothing
    return profiler
