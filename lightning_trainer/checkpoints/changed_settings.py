"""ApplyChangedSettings: changed optimiser settings take effect when a run goes on."""

import copy
import warnings
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_trainer.base.optimising import by_name
from lightning_trainer.run.state import RunCallback, RunState
from lightning_trainer.session.checkpoint_header import KEY, layer_state
from lightning_trainer.session.settings import differences


class ApplyChangedSettings(RunCallback):
    """Lets a changed learning rate, weight decay or schedule win over the checkpoint's.

    The states of optimiser and scheduler include their settings, so a checkpoint restores the old
    ones against the command line. Each checkpoint therefore also has the settings that
    `create_optimiser` made. If it makes others now, those hold as if they had been there from the
    beginning: the new schedule is stepped to the iteration reached. The optimiser's moments stay.
    Assumes a `BaseModule`.
    """

    def __init__(self, run: RunState) -> None:
        super().__init__(run)
        self._fresh: dict[str, Any] = {}  # as `create_optimiser` makes them
        self._restored: dict[str, Any] = {}

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        checkpoint[KEY]["optimiser"] = self._fresh

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        self._restored = layer_state(checkpoint).get("optimiser") or {}
        for each in _each(self._restored).values():
            for group in each.get("groups", {}).values():
                group.pop("fused", None)  # was saved by older versions

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Reads the settings before the checkpoint's replace them."""
        optimisers = by_name(pl_module.optimiser).values()
        if trainer.optimizers and all(isinstance(each, Optimizer) for each in optimisers):
            self._fresh = _settings(pl_module) if optimisers else {}
        if not (self._restored and self._fresh):
            return
        before, now = map(_kind, (self._restored, self._fresh))
        if before != now:
            raise ValueError(
                f"the checkpoint's optimiser is {before}, `create_optimiser` makes {now}: "
                "keep it as it was, or begin a new session with its weights by `--init_from`"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        restored, self._restored = self._restored, {}
        changes = differences(restored, self._fresh) if restored else []
        if not changes:
            return
        _apply(pl_module, _each(restored))
        if trainer.is_global_zero:
            print(f"Changed optimiser settings, from iteration {trainer.global_step + 1} on:")
            print(*(f"    {change}" for change in changes), sep="\n", flush=True)


def _each(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of each of several optimisers, or of the one that has no name."""
    each: dict[str, dict[str, Any]] = settings.get("optimisers", {"": settings})
    return each


def _kind(settings: dict[str, Any]) -> str:
    kinds = []
    for name, each in _each(settings).items():
        sizes = [group["n_tensors"] for group in each["groups"].values()]
        told = f" as {name!r}" if name else ""
        kinds.append(f"{each['kind']}{told} over groups of {sizes} tensors")
    return " and ".join(kinds)


def _settings(pl_module: Any) -> dict[str, Any]:
    optimisers = {name: _of_optimiser(o) for name, o in by_name(pl_module.optimiser).items()}
    schedulers = {n: s.state_dict() for n, s in by_name(pl_module.scheduler).items()}
    if "" in optimisers:
        settings = {**optimisers[""], "scheduler": schedulers.get("", {})}
    else:
        settings = {"optimisers": optimisers, "schedulers": schedulers}
    return copy.deepcopy(settings)


def _of_optimiser(optimiser: Optimizer) -> dict[str, Any]:
    groups = {
        str(i): {"n_tensors": len(group["params"]), **_plain_settings(group)}
        for i, group in enumerate(optimiser.param_groups)
    }
    return {"kind": type(optimiser).__name__, "groups": groups}


def _apply(pl_module: Any, old: dict[str, dict[str, Any]]) -> None:
    """Gives the optimisers what `create_optimiser` makes now; `old` is what it made before."""
    kept = pl_module.optimiser, pl_module.scheduler
    pl_module.scheduler = None
    pl_module.create_optimiser()
    new_optimisers, new_schedulers = by_name(pl_module.optimiser), by_name(pl_module.scheduler)
    pl_module.optimiser, pl_module.scheduler = kept
    schedulers = by_name(pl_module.scheduler)
    for name in schedulers.keys() & new_schedulers.keys():
        scheduler = schedulers[name]
        scheduler.load_state_dict(_at_iteration(new_schedulers[name], scheduler))
    plateaus = [s for s in schedulers.values() if isinstance(s, ReduceLROnPlateau)]
    for name, optimiser in by_name(pl_module.optimiser).items():
        is_reduced = any(plateau.optimizer is optimiser for plateau in plateaus)
        groups = zip(optimiser.param_groups, new_optimisers[name].param_groups, strict=True)
        for i, (group, new) in enumerate(groups):
            # Its reductions so far, as a factor.
            reduced = group["lr"] / old[name]["groups"][str(i)]["lr"] if is_reduced else 1.0
            group.update(_plain_settings(new))
            group["lr"] *= reduced


def _at_iteration(new: Any, old: Any) -> dict[str, Any]:
    """The state of scheduler `new`, stepped as far as `old`."""
    if isinstance(new, ReduceLROnPlateau):
        reached = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
        return {**new.state_dict(), **{name: getattr(old, name) for name in reached}}
    with warnings.catch_warnings():
        # Its optimiser never steps, and torch would warn of that.
        warnings.simplefilter("ignore")
        for _ in range(old.last_epoch):
            new.step()
    return dict(new.state_dict())


def _plain_settings(group: dict[str, Any]) -> dict[str, Any]:
    """Without `fused`, which base/fusing.py decides by device and checkpoint."""
    return {name: value for name, value in group.items() if name not in ("params", "fused")}
