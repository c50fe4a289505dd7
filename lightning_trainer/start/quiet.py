"""Silences Lightning's chatter and known harmless warnings."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator

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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences them until the block ends."""

    def show(args: threading.ExceptHookArgs) -> None:
        # A full disk ends TensorBoard's thread with an OSError; the logger prints its own message.
        if not isinstance(args.exc_value, OSError):
            threading.__excepthook__(args)

    before_hook, threading.excepthook = threading.excepthook, show
    names = ("lightning.pytorch", "lightning.fabric")
    before = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        for message in _HARMLESS:
            warnings.filterwarnings("ignore", message=message)
        try:
            for name in names:
                logging.getLogger(name).setLevel(logging.WARNING)
            yield
        finally:
            threading.excepthook = before_hook
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
