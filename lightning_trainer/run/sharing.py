"""ShareSession: one session folder and one seed for all processes."""

import os
from typing import Any

import lightning.pytorch as pl

from lightning_trainer.run.state import RunCallback
from lightning_trainer.session.secret_forms import known_forms
from lightning_trainer.session.terminal import keep_log


class ShareSession(RunCallback):
    """Sends the first process's folder and seed to processes of another launcher (torchrun, srun).

    From then on their output goes to log_rank1.txt and so on.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        session = self.run.session
        self.run.processes.start(trainer)
        if trainer.world_size == 1:
            return
        known = session.path.name != ""
        session.path = trainer.strategy.broadcast(session.path)
        own_seed = os.environ.get("PL_GLOBAL_SEED")
        seed = trainer.strategy.broadcast(own_seed)
        if seed is not None and seed != own_seed:  # each process has drawn one
            pl.seed_everything(int(seed), verbose=False)
        if not known:
            secrets = known_forms(self.run.secrets)
            self.run.at_end(keep_log(session.log(trainer.global_rank), secrets))

    def teardown(self, *_: Any, **__: Any) -> None:
        # A process that fails does not come here.
        self.run.processes.close()
