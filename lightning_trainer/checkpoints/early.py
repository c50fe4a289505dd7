"""Who ended a run early and why, and how it goes on."""

import inspect
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, Timer

from lightning_trainer.run.state import RunCallback


class NotingTrainer(pl.Trainer):
    """Notes whose code sets `should_stop`, which Lightning itself does not keep."""

    stopper: Any = None  # the object whose method has set it, or the name of a function
    _stops = False

    @property
    def should_stop(self) -> bool:
        return self._stops

    @should_stop.setter
    def should_stop(self, stops: bool) -> None:
        frame = inspect.currentframe()
        if stops and not self._stops and frame and frame.f_back:
            name = frame.f_back.f_code.co_name
            self.stopper = frame.f_back.f_locals.get("self", f"the function `{name}`")
        self._stops = stops


def early_end(trainer: pl.Trainer) -> tuple[str, str]:
    """Who ended a run early, e.g. "EarlyStopping", and why; both empty if nobody is known."""
    stopper = getattr(trainer, "stopper", None)
    if stopper is None or not trainer.should_stop:
        return "", ""
    name = stopper if isinstance(stopper, str) else type(stopper).__name__
    reason = "it set `trainer.should_stop`"
    if isinstance(stopper, EarlyStopping) and stopper.stopping_reason_message:
        reason = stopper.stopping_reason_message.removesuffix(" Signaling Trainer to stop.")
    elif isinstance(stopper, Timer):
        left_s = stopper.time_remaining() or 0.0
        whole = timedelta(seconds=round(stopper.time_elapsed() + left_s))
        reason = f"the run's time of {whole} is over (`trainer.max_time`)"
    return name, reason.rstrip(".")


def options_to_go_on(trainer: pl.Trainer) -> str:
    """What the command to go on needs after an early end: more time, where that is over."""
    is_over = trainer.should_stop and isinstance(getattr(trainer, "stopper", None), Timer)
    return " --trainer.max_time DD:HH:MM:SS" if is_over else ""


class GoOnAfterEarlyStopping(RunCallback):
    """Lets `EarlyStopping` wait anew where it has ended the run, which goes on nevertheless.

    Its patience is that of the settings: a checkpoint restores an earlier one.
    """

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Notes the settings before the checkpoint's replace them."""
        self._patiences = [(each, each.patience) for each in trainer.early_stopping_callbacks]

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        for each, patience in self._patiences:
            each.patience = patience
            if each.wait_count >= patience:
                each.wait_count = 0
                if trainer.is_global_zero:
                    print(
                        f"`{type(each).__name__}` has ended this run before: its patience of "
                        f"{patience} for {each.monitor} begins anew",
                        flush=True,
                    )
