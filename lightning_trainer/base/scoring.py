"""Says which number of a validation is the score, and whether a higher one is better."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, cast

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric
from torchmetrics.metric import CompositionalMetric

from lightning_trainer.base.metrics import named_metrics
from lightning_trainer.base.optimising import by_name

Direction = Literal["max", "min"]


def score_direction(module: Any) -> Direction | None:
    """Which score is better, by `score_mode`, else by the metric; a lower loss is.

    None if neither says so.
    """
    return cast("Direction | None", module.score_mode) or _direction_of(module)


def check_direction(module: Any) -> None:
    """Looks at the score before a training, and warns of a `score_mode` against its metric.

    Raises:
        ValueError: If nothing says which score is better, or a plateau scheduler waits for the
            other direction.
    """
    given, found = module.score_mode, _direction_of(module)
    name = module.score_key.split("/", 1)[1]
    if given is None and found is None:
        raise ValueError(
            f"the score is `{name}`, and its metric does not say whether a higher one is better: "
            "give `--model.score_mode max` or `min`, set `higher_is_better` in the metric's class, "
            "or name another number by `--model.score_name`"
        )
    if given and found and given != found:
        rank_zero_warn(
            f"`score_mode` is {given!r}, but the metric says that a {_word(found)} `{name}` is "
            "better: leave `score_mode` out if the metric is right"
        )
    for scheduler in by_name(module.scheduler).values():
        if not isinstance(scheduler, ReduceLROnPlateau) or scheduler.mode == (given or found):
            continue
        raise ValueError(
            f"the scheduler's `mode` is {scheduler.mode!r}, but it is stepped with the score, of "
            f"which a {_word(given or found)} one is better (`{name}`): give it "
            f"mode={given or found!r}"
        )


def describe_score(name: str, direction: str | None) -> str:
    """For people, e.g. "accuracy, higher is better" of "val/accuracy" and "max"."""
    name = name.split("/", 1)[1]
    return f"{name}, {_word(direction)} is better" if direction else name


def check_score(module: Any, results: Mapping[str, Tensor], mode: str) -> None:
    """Looks for the score among the results of an evaluation.

    Raises:
        TypeError: If the score is not a scalar.
        ValueError: If no metric has its name.
    """
    names = [key.split("/", 1)[1] for key in results]
    score = module.score_key.split("/", 1)[1]
    # A test may have other sets of data than a validation.
    measured = {name.rpartition("/")[2] for name in names} if mode == "test" else ()
    if score in names or score.rpartition("/")[2] in measured:
        return
    if score == "loss":
        raise ValueError(
            f"`score_name` is 'loss', but `{type(module).__name__}.forward_loss` returned None in "
            "each batch of the evaluation: return a loss there, or use one of "
            f"{', '.join(names)}"
        )
    hook = f"`{type(module).__name__}.create_metrics`"
    if module.score_name in (None, *named_metrics(module.val_metrics)):
        raise TypeError(
            f"{hook}: the score `{module.score_key}` is no scalar, or `update_metrics` has not "
            "updated it: put a scalar metric first, or name one by `score_name`"
        )
    near = get_close_matches(str(module.score_name), names) or names
    raise ValueError(
        f"`score_name` is {module.score_name!r}, which `create_metrics` does not define: "
        f"use one of {', '.join(near)}"
    )


def _direction_of(module: Any) -> Direction | None:
    metrics, name = named_metrics(module.val_metrics), module.score_key.split("/", 1)[1]
    own = name.rpartition("/")[2]  # without the name of a set of data
    name = own if own in metrics else name
    if name not in metrics and (own == "loss" or own.startswith("loss_")):
        return "min"
    # A number of a metric that gives several has no metric of its name.
    asked = [metrics[name]] if name in metrics else [*metrics.values()]
    higher = {_higher_is_better(metric) for metric in asked}
    return None if len(higher) != 1 or None in higher else "max" if True in higher else "min"


def _higher_is_better(metric: Metric) -> bool | None:
    """As the metric says, else as all that it wraps; None if they don't."""
    if isinstance(metric, CompositionalMetric):  # e.g. 1 - accuracy
        return None
    if metric.higher_is_better is not None:
        return bool(metric.higher_is_better)
    wrapped = [m for m in metric.modules() if isinstance(m, Metric) and m is not metric]
    inner = {_higher_is_better(m) for m in wrapped}
    return inner.pop() if len(inner) == 1 else None


def _word(direction: str | None) -> str:
    return "higher" if direction == "max" else "lower"
