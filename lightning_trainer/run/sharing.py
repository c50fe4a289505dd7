"""One session folder for all processes."""

import os

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lightning_trainer.run.processes import Agreement
from lightning_trainer.session.folder import Session
from lightning_trainer.session.terminal import TerminalLog


class ShareSession(Callback):
    """Tells the folder to processes that were not started by the first one (torchrun, srun).

    It comes before every other callback. Their output goes to log_rank1.txt and so on from then on.

    Args:
        session: Its path is filled in where it is missing.
        agreement: Starts here, for those that come after it, and ends here.
    """

    def __init__(self, session: Session, agreement: Agreement) -> None:
        self.session = session
        self.agreement = agreement

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Broadcasts the first process's folder and seed."""
        self.agreement.start(trainer)
        if trainer.world_size == 1:
            return
        known = self.session.path.name != ""
        self.session.path = trainer.strategy.broadcast(self.session.path)
        own_seed = os.environ.get("PL_GLOBAL_SEED")
        seed = trainer.strategy.broadcast(own_seed)
        if seed is not None and seed != own_seed:  # each has drawn one of its own
            pl.seed_everything(int(seed), verbose=False)
        if not known:
            TerminalLog(self.session.log(trainer.global_rank)).start()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ends the meetings; not reached by a process that fails."""
        self.agreement.close()
