"""Checks the results of a project's hooks; each error names the remedy."""

import inspect
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import Metric

from lightning_trainer.base.metrics import named_metrics

_HOOKS = "create_data create_model create_loss create_optimiser create_metrics forward_model"
_HOOKS += " forward_loss update_metrics visualise count_examples"
_MEAN = "average over the batch, e.g. `loss.mean()`"
_NUMBER = "leave the tensor as it is, without `.item()` or `float`"
_SEVERAL = "return the loss alone, or losses as a dict by name"


def require_hooks(cls: type) -> None:
    """Raises a TypeError that names the abstract hooks a class leaves undefined.

    `abc.ABC` is not used: the command line's parser refuses its classes without naming the hook.
    """
    if missing := [n for n in dir(cls) if getattr(getattr(cls, n), "__isabstractmethod__", False)]:
        base = next(c for c in cls.__mro__ if missing[0] in vars(c))
        names = ", ".join(f"`{name}`" for name in missing)
        raise TypeError(
            f"`{cls.__name__}` does not define {names}: every {base.__name__} needs "
            f"{'it' if len(missing) == 1 else 'them'} "
            f"(`help({base.__module__}.{base.__name__}.{missing[0]})` says what to set)"
        )
    for name in _HOOKS.split():
        _check_arguments(cls, name)


def _check_arguments(cls: type, name: str) -> None:
    """Raises a TypeError if an overridden hook can't be called as its base's is."""
    found = [vars(c)[name] for c in cls.__mro__ if name in vars(c)]
    if not found or found[0] is found[-1] or not inspect.isfunction(found[0]):
        return
    own, base = found[0], found[-1]
    wanted = inspect.signature(base)
    try:
        inspect.signature(own).bind(*wanted.parameters)
    except TypeError:
        names = ", ".join(wanted.parameters)
        raise TypeError(
            f"`{cls.__name__}.{name}` takes ({', '.join(inspect.signature(own).parameters)}), and "
            f"is called with others: write `def {name}({names})`"
        ) from None


def require_begun(*made: Any) -> None:
    """Raises a TypeError for an object whose class has not called its base's `__init__`."""
    for each in made:
        base = next(c for c in type(each).__mro__ if c.__module__.startswith(__package__))
        if not any(name.startswith(f"_{base.__name__}__") for name in vars(each)):
            raise TypeError(
                f"`{type(each).__name__}.__init__` does not call its base's: begin it with "
                "`super().__init__(**kwargs)`, and let it take `**kwargs`"
            )


def call_hook(owner: Any, hook: str, attribute: str, kind: Any) -> None:
    """Calls a hook, which must assign an object of `kind`, a class or several, to `attribute`.

    Raises:
        AttributeError: If the hook reads hyper-parameters that were not saved.
        RuntimeError: If it reads the trainer where there is none, as in `load_from_checkpoint`.
        TypeError: If the attribute is unset or of another kind.
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
    except RuntimeError as ex:
        if "is not attached to a `Trainer`" not in str(ex):
            raise
        raise RuntimeError(
            f"`{type(owner).__name__}.{hook}` reads `self.trainer`, which there is in a run only: "
            "let `pl.Trainer().predict(module, datamodule=data, ckpt_path=PATH)` make the model"
        ) from ex
    require(owner, hook, attribute, kind)


def require(owner: Any, hook: str, attribute: str, kind: Any) -> None:
    """Raises a TypeError unless the hook has set the attribute to an object of `kind`."""
    value = getattr(owner, attribute)
    if value is None or not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(k.__name__ for k in kinds).replace("Callable", "a callable")
        raise TypeError(
            f"`{type(owner).__name__}.{hook}` left `self.{attribute}` as {in_short(value)}: "
            f"assign {wanted} to it"
        )


def require_override(owner: Any, hook: str, base: type) -> None:
    """Raises a TypeError if a class with several optimisers leaves a hook as its base has it."""
    if getattr(type(owner), hook) is getattr(base, hook):
        raise TypeError(
            f"`{type(owner).__name__}.create_optimiser` sets several optimisers: override "
            f"`{hook}`, and call `self.optimise(NAME, loss)` in it for each"
        )


def check_dataset(owner: Any, attribute: str, dataset: Any) -> None:
    """Raises a ValueError for what is missing, empty, or neither a dataset nor a stream."""
    of_owner = f"`self.{attribute}` of `{type(owner).__name__}`"
    if dataset is None:
        raise ValueError(
            f"`{type(owner).__name__}.create_data` left `self.{attribute}` unset: "
            "assign a dataset whose samples are dicts"
        )
    if isinstance(dataset, IterableDataset):
        return
    if isinstance(dataset, DataLoader):
        loader = attribute.partition("_dataset")[0] + "_dataloader"
        raise ValueError(
            f"{of_owner} is a {type(dataset).__name__}: assign its dataset, or let `{loader}` "
            "return a loader of your own"
        )
    reads = any(hasattr(dataset, name) for name in ("__getitem__", "__getitems__", "get_batch"))
    if isinstance(dataset, str) or not (reads and hasattr(dataset, "__len__")):
        raise ValueError(
            f"{of_owner} is a {type(dataset).__name__}, no dataset: give it `__len__` and "
            "`__getitem__`, or derive a stream from `torch.utils.data.IterableDataset`"
        )
    if len(dataset) == 0:
        raise ValueError(f"{of_owner} is empty: check the paths and splits in `create_data`")


def check_metrics(module: Any) -> None:
    """Looks for metrics that would count batches of training and validation, or of two, together.

    Raises:
        ValueError: If training and validation share one.
    """
    both = (module.train_metrics, module.val_metrics)
    train, val = ({id(m) for m in metrics.modules()} for metrics in both)
    if train & val:
        raise ValueError(
            f"`{type(module).__name__}.create_metrics`: `train_metrics` and `val_metrics` share "
            "a metric, which would mix training and validation: use `.clone()` for one of them"
        )
    for metric in (m for metrics in both for m in named_metrics(metrics).values()):
        parts = [part for part in metric.modules() if isinstance(part, Metric)]
        if not any(part.metric_state or type(part).reset is not Metric.reset for part in parts):
            rank_zero_warn(
                f"`{type(module).__name__}.create_metrics`: `{type(metric).__name__}` has no "
                "state, so that nothing is reset after a validation: name what `update` adds to "
                "by `self.add_state` in its `__init__`"
            )


def in_short(value: Any) -> str:
    """A value for a message of one line: a long one by its class."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    text = repr(value)
    if len(text) <= 60 and "\n" not in text:
        return text
    length = f" of {len(value)}" if isinstance(value, list | tuple | Mapping) else ""
    return f"a {type(value).__name__}{length}"


def refuse_several(data: Any, attribute: str, kind: str) -> NoReturn:
    """Raises a ValueError for several datasets where there may be one, or without names."""
    raise ValueError(
        f"`self.{attribute}` of `{type(data).__name__}` is a {kind} of datasets: `val_dataset` and "
        "`test_dataset` may be a dict of them by name, the others one dataset"
    )


def describe_batch(batch: Any) -> str:
    """What a batch is, for a message."""
    if isinstance(batch, Mapping):
        return f"a dict of {', '.join(map(str, batch))}"
    length = f" of {len(batch)}" if isinstance(batch, list | tuple) else ""
    return f"a {type(batch).__name__}{length}"


def refuse_labels(module: Any, batch: Any) -> NoReturn:
    """Raises a TypeError for a batch without "label"."""
    raise TypeError(
        f'`{type(module).__name__}.update_metrics` is not overridden, and reads "label" of a batch '
        f"that is {describe_batch(batch)}: override it, e.g. with `metrics.update(output, "
        "batch[NAME])`"
    ) from None


def refuse_check(module: Any, n_batches: float, ex: Exception) -> NoReturn:
    """Raises a RuntimeError for metrics that fail in the check before training."""
    place = traceback.extract_tb(ex.__traceback__)[-1]
    raise RuntimeError(
        f"`val_metrics` of `{type(module).__name__}` fail in the check before training, which has "
        f"{n_batches} batches: {type(ex).__name__}: {ex} ({place.filename}, line {place.lineno}). "
        "If they need all of the data, give `--trainer.num_sanity_val_steps 0` (-1: check all)"
    ) from ex


def check_count(module: Any, n_examples: Any) -> None:
    """Raises a TypeError for a `count_examples` that returns no number."""
    is_scalar = isinstance(n_examples, Tensor) and n_examples.numel() == 1
    if not is_scalar and not isinstance(n_examples, int | float):
        raise TypeError(
            f"`{type(module).__name__}.count_examples` returned {in_short(n_examples)}: return the "
            f"number of {module.examples_unit} in the batch"
        )


def refuse_to_count(module: Any, values: Iterable[Any]) -> NoReturn:
    """Raises a TypeError for a batch without a tensor that has a first dimension."""
    raise TypeError(
        f"`count_examples` of `{type(module).__name__}` finds no tensor of shape (B, ...) among "
        f"{[type(value).__name__ for value in values]}: override it to return B"
    )


def refuse_loss(module: Any, loss: Any, hook: str, name: str | None = None) -> NoReturn:
    """Raises a TypeError for what is no loss; `name` is that in a dict of losses."""
    got = in_short(loss)
    place = "" if name is None else f" as {name!r}"
    remedy = "only an evaluation may have no loss" if loss is None else _MEAN
    if isinstance(loss, float | int):
        remedy = _NUMBER
    elif isinstance(loss, tuple | list):
        remedy = _SEVERAL
    raise TypeError(
        f"`{type(module).__name__}.{hook}` returned {got}{place}, not a scalar tensor"
        f"{'' if name else ' or a dict of them'}: {remedy}"
    )


def check_weights(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> None:
    """Raises a ValueError that names up to five tensors in which the weights do not fit.

    torch's own message has every tensor in one line.
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
            f"the checkpoint is of another model: {'; '.join(sorted(wrong)[:5])}{more}. Give the "
            "settings it was trained with, or let a new session take what fits, by `--config FILE "
            "--init_from PATH` in place of `--ckpt_path`"
        )
