"""TellOfBest: a message on each new best score."""

from typing import Any

import lightning.pytorch as pl

from lightning_trainer.base.results import in_training
from lightning_trainer.base.scoring import describe_score
from lightning_trainer.run.state import RunCallback
from lightning_trainer.session.folder import Session
from lightning_trainer.session.number import format_number


class TellOfBest(RunCallback):
    """Passes a new best score on to the run's notifier, if there is one."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        run, best = self.run, self.run.newest_best
        if run.notifier and run.improved and best and in_training(trainer):
            score = format_number(best.score, 4)
            told = describe_score(best.name, best.mode)
            facts = {"SCORE": score, "ITERATION": str(best.iteration)}
            text = f"{score} at iteration {best.iteration:,} ({told})"
            title = f"{run.settings.get('tag')}: new best"
            run.notifier.tell("best", title, text, {**facts, **place_of(run.session)})


def place_of(session: Session) -> dict[str, str]:
    """What a shell command is told of a session's place."""
    return {"SESSION": str(session.path.absolute())}
