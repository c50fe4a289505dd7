"""Silences Lightning's chatter and known harmless warnings."""

import logging
import threading
import warnings
from contextlib import ExitStack

_HARMLESS = (
    # The summary reports slow data by measurement.
    ".*does not have many workers which may be a bottleneck",
    # Log lines follow iterations, not epochs.
    ".*is smaller than the logging interval",
    # Lightning's use of torch, which a project can't change.
    ".*isinstance.treespec, LeafSpec.. is deprecated",
    ".*functional.all_gather is deprecated",
    # WarnOfInexactRestart reports it.
    ".*your dataloader is not resumable",
    # Averaged weights: `configure_model` does not shard the model, and a test uses these weights.
    ".*using the WeightAveraging callback with a model that overrides",
    ".*using the WeightAveraging callback, but loading a checkpoint outside",
    # Results already cover all processes.
    ".*recommended to use `self.log.*sync_dist=True",
)


def quiet(stack: ExitStack) -> None:
    """Silences them until the stack closes."""
    stack.enter_context(warnings.catch_warnings())
    for message in _HARMLESS:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.WARNING)
    stack.callback(setattr, threading, "excepthook", threading.excepthook)
    threading.excepthook = _show_fault


def _show_fault(args: threading.ExceptHookArgs) -> None:
    # A full disk ends TensorBoard's thread with an OSError; the logger prints its own message.
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)
