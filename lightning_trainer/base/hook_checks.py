"""Checks of what a project's hooks made, each with the remedy."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NoReturn

from torch import Tensor

from lightning_trainer.base.metrics import named_metrics


def require_hooks(cls: type) -> None:
    """Refuses a class that leaves one of its base's abstract hooks undefined.

    Done here and not by `abc.ABC`, because the command line's parser turns such classes away with a
    message that does not name the hook.

    Raises:
        TypeError: Names the missing hooks.
    """
    hooks = [name for name in dir(cls) if hasattr(getattr(cls, name), "__isabstractmethod__")]
    if missing := [name for name in hooks if getattr(cls, name).__isabstractmethod__]:
        base = next(c for c in cls.__mro__ if missing[0] in vars(c))
        names = ", ".join(f"`{name}`" for name in missing)
        raise TypeError(
            f"`{cls.__name__}` does not define {names}: every {base.__name__} needs "
            f"{'it' if len(missing) == 1 else 'them'} "
            f"(`help({base.__module__}.{base.__name__}.{missing[0]})` says what to set)"
        )


def call_hook(owner: Any, hook: str, attribute: str, kind: Any) -> None:
    """Calls a hook, which must assign an object of some kind to an attribute.

    Args:
        owner: The module.
        hook: Name of its method.
        attribute: What the hook assigns.
        kind: A class, or a tuple of classes.

    Raises:
        AttributeError: If the hook reads hyper-parameters that were not saved.
        TypeError: If the attribute is not as asked for.
    """
    try:
        getattr(owner, hook)()
    except AttributeError as ex:
        if owner.hparams or "'AttributeDict'" not in str(ex):
            raise
        raise AttributeError(
            f"`{type(owner).__name__}.{hook}` reads `self.hparams`, which is empty: call "
            "`self.save_hyperparameters()` in `__init__`"
        ) from ex
    require(owner, hook, attribute, kind)


def require(owner: Any, hook: str, attribute: str, kind: Any) -> None:
    """Refuses an attribute that a hook has not assigned, or to something else.

    Raises:
        TypeError: Names the hook and the attribute.
    """
    value = getattr(owner, attribute)
    if value is None or not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(k.__name__ for k in kinds).replace("Callable", "a callable")
        raise TypeError(
            f"`{type(owner).__name__}.{hook}` left `self.{attribute}` as {value!r}: "
            f"assign {wanted} to it"
        )


def check_metrics(module: Any) -> None:
    """Refuses a metric that would count training and validation together.

    Raises:
        ValueError: Says what to do.
    """
    train, val = ({id(m) for m in metrics.modules()} for metrics in
                  (module.train_metrics, module.val_metrics))  # fmt: skip
    if train & val:
        raise ValueError(
            f"`{type(module).__name__}.create_metrics`: `train_metrics` and `val_metrics` share "
            "a metric, which would mix training and validation: use `.clone()` for one of them"
        )


def refuse_loss(module: Any, loss: Any) -> NoReturn:
    """Refuses a loss that is not a scalar tensor.

    Raises:
        TypeError: Says what `forward_loss` returned.
    """
    got = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
    raise TypeError(
        f"`{type(module).__name__}.forward_loss` returned {got}, not a scalar tensor: "
        "average over the batch, e.g. `loss.mean()`"
    )


def check_weights(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> None:
    """Refuses weights of another model; torch's own message has every tensor in one line.

    Raises:
        ValueError: Names the tensors that differ, with their shapes.
    """
    wrong = [f"`{name}` is not in the checkpoint" for name in own.keys() - loaded.keys()]
    wrong += [f"`{name}` is not in the model" for name in loaded.keys() - own.keys()]
    for name in own.keys() & loaded.keys():
        shapes = tuple(own[name].shape), tuple(loaded[name].shape)
        if shapes[0] != shapes[1]:
            wrong.append(f"`{name}` is {shapes[1]} in the checkpoint, {shapes[0]} in the model")
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"the checkpoint is of another model: {'; '.join(sorted(wrong)[:5])}{more}. Give "
            "the settings it was trained with, or start a new session without `--ckpt_path`"
        )


def check_score(module: Any, results: Mapping[str, Tensor], mode: str) -> None:
    """Refuses a score that is not among the results of an evaluation.

    Raises:
        TypeError: If the score is no scalar.
        ValueError: If there is no metric of that name.
    """
    if module.score_key.replace("val/", f"{mode}/", 1) in results:
        return
    hook = f"`{type(module).__name__}.create_metrics`"
    names = [key.split("/", 1)[1] for key in results]
    if module.score_name in (None, *named_metrics(module.val_metrics)):
        raise TypeError(
            f"{hook}: the score `{module.score_key}` is no scalar: "
            "put a scalar metric first, or name one by `score_name`"
        )
    near = get_close_matches(str(module.score_name), names) or names
    raise ValueError(
        f"`score_name` is {module.score_name!r}, which `create_metrics` does not define: "
        f"use one of {', '.join(near)}"
    )
