"""BeginModel: the model exists before callbacks look at it, with the weights of `--init_from`."""

import contextlib
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from lightning_trainer.base.data import BaseDataModule
from lightning_trainer.checkpoints.weights import find_weights, read_weights
from lightning_trainer.run.state import RunCallback
from lightning_trainer.session.slow_start import begin_step

_NOT_TAKEN = ("loss_fn.", "train_metrics.", "val_metrics.")  # of the new run, e.g. class weights
_MOST_NAMED = 20


class BeginModel(RunCallback):
    """Makes the model before the callbacks after it look for it in their `setup`.

    Lightning calls the module's `setup` and `configure_model` after those of all callbacks, where
    its own `BackboneFinetuning` finds nothing to freeze. Here they come first, once. Its order
    stays with strategies that shard the model in `configure_model`: FSDP, ModelParallel, DeepSpeed.
    """

    tells = True  # whether to print what was taken

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        strategy, configure = trainer.strategy, pl_module.configure_model
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, BaseDataModule):  # whose own `setup` a project may have replaced
            BaseDataModule.setup(data, stage)

        def configure_and_begin() -> None:
            vars(pl_module).pop("configure_model", None)
            configure()
            self._begin(trainer, pl_module)

        begin_step("`create_model`")
        if strategy.restore_checkpoint_after_setup:
            vars(pl_module)["configure_model"] = configure_and_begin
            return
        pl_module.setup(stage=stage)
        with contextlib.ExitStack() as stack:  # what Lightning calls it in
            stack.enter_context(strategy.tensor_init_context())
            stack.enter_context(strategy.model_sharded_context())
            stack.enter_context(trainer.precision_plugin.module_init_context())
            configure_and_begin()
        begin_step(f"the model on {strategy.root_device}, and its checkpoint")
        for name in ("setup", "configure_model"):
            _skip_once(pl_module, name)

    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        settings = self.run.settings
        path = settings.get("init_from")
        if not path or settings.get("ckpt_path"):  # which brings all weights
            return
        files, lines = find_weights(path)
        report = take_weights(pl_module, read_weights(files), str(files[0]))
        if self.tells and trainer.is_global_zero:
            print(*lines, *report, sep="\n", flush=True)


def _skip_once(module: pl.LightningModule, name: str) -> None:
    """Lets Lightning's own call of a hook, which has been called, do nothing."""

    def skip(*_: Any, **__: Any) -> None:
        vars(module).pop(name, None)

    vars(module)[name] = skip


def take_weights(module: nn.Module, given: Mapping[str, Tensor], source: str) -> list[str]:
    """Loads the tensors that have the name and shape of one of the module's; returns a report.

    Names may lack "model.", or begin with what another program has put before them: the one
    beginning that fits most is exchanged for one of the module's.

    Raises:
        ValueError: If none fits.
    """
    named = module.state_dict().items()
    own = {n: t for n, t in named if isinstance(t, Tensor) and not n.startswith(_NOT_TAKEN)}
    names = _own_names(given, own)
    fitting: dict[str, Any] = {
        n: given[theirs] for n, theirs in names.items() if _fits(own.get(n), given[theirs])
    }
    if not any(tensor.is_floating_point() or tensor.is_complex() for tensor in fitting.values()):
        raise ValueError(
            f"`init_from`: no tensor in {source} has the name and shape of one in the model, so "
            f"nothing was taken. It has {_shown(map(_described, given.items()), 3)}; the model has "
            f"{_shown(map(_described, own.items()), 3)}: give weights of a model with equal parts"
        )
    if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(module, fitting, options=options)
    else:
        module.load_state_dict(fitting, strict=False)
    return _report(own, given, names, fitting, source)


def _own_names(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """The names in `given` by those that they have here."""
    plain = {name.replace("_orig_mod.", ""): name for name in given}  # of `torch.compile`
    removed = dict.fromkeys(["", *(f"{n.partition('.')[0]}." for n in plain if "." in n)])
    parts = [name.split(".") for name in own]
    inner = [".".join(part[:n]) + "." for n in (1, 2) for part in parts if len(part) > n]
    added = dict.fromkeys(["", "model.", *inner])

    def renamed(pair: tuple[str, str]) -> dict[str, str]:
        before, now = pair
        begin = len(before)
        return {now + n[begin:]: theirs for n, theirs in plain.items() if n.startswith(before)}

    def n_fitting(pair: tuple[str, str]) -> int:
        return sum(_fits(own.get(n), given[theirs]) for n, theirs in renamed(pair).items())

    return renamed(max(product(removed, added), key=n_fitting))


def _fits(own: Tensor | None, given: Tensor) -> bool:
    return own is not None and (is_lazy(own) or own.shape == given.shape)


def _report(
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    names: Mapping[str, str],
    fitting: Mapping[str, Tensor],
    source: str,
) -> list[str]:
    """Lines on what was taken, and what was not."""
    shared = {own[name].data_ptr() for name in fitting} - {0}  # tied weights have several names
    left = [n for n in own if n not in fitting and own[n].data_ptr() not in shared]
    of_shape = [
        f"{name} is {tuple(given[names[name]].shape)} there, {tuple(own[name].shape)} here"
        for name in left
        if name in names
    ]
    known = {theirs for name, theirs in names.items() if name in own}
    lists = {
        "Of another shape, left as made": of_shape,
        "Missing there, left as made": [name for name in left if name not in names],
        "Not in this model": [name for name in given if name not in known],
    }
    n_taken = len(own) - len(left)
    return [
        f"Weights: {n_taken} of the model's {len(own)} tensors are taken from {source}",
        *(f"    {title}: {_shown(found, _MOST_NAMED)}" for title, found in lists.items() if found),
    ]


def _described(item: tuple[str, Tensor]) -> str:
    name, tensor = item
    return name if is_lazy(tensor) else f"{name} {tuple(tensor.shape)}"


def _shown(names: Iterable[str], most: int) -> str:
    names = [*names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more
