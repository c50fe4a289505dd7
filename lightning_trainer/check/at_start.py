"""WarnOfMistakes: the checks that cost nothing, at the start of each training."""

import contextlib
import sys
from typing import Any

import lightning.pytorch as pl

from lightning_trainer.check.checking import Check, run_checks
from lightning_trainer.check.findings import Finding
from lightning_trainer.check.leftovers import find_leftovers, n_iterations
from lightning_trainer.check.loaded import find_not_loaded, watched_loads
from lightning_trainer.check.modes import find_left_in_eval
from lightning_trainer.check.optimiser import find_unoptimised
from lightning_trainer.check.project import Load, Project
from lightning_trainer.check.rates import find_wrong_lengths
from lightning_trainer.run.state import RunCallback, RunState

_LONG = 1000  # iterations of a run in which a setting of a trial would be a loss
_SCHEDULE_S = 0.02  # a schedule that takes longer to step through is left to `check`

# Without a forward pass. `base/scoring.py` looks at the score itself.
AT_START: dict[str, Check] = {
    "settings": find_leftovers,
    "schedule": lambda project: find_wrong_lengths(project, _SCHEDULE_S),
    "optimiser": find_unoptimised,
    "loaded": find_not_loaded,
    "modes": find_left_in_eval,
}


class WarnOfMistakes(RunCallback):
    """Warns of what `check` would find without a forward pass, two lines a finding.

    A run that goes on has been told before.
    """

    def __init__(self, run: RunState) -> None:
        super().__init__(run)
        self._loads: list[Load] = []
        self._watch = contextlib.ExitStack()

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Begins to look at what `create_model` loads."""
        if stage == "fit":
            self.run.at_end(self._watch.close)
            self._loads = self._watch.enter_context(watched_loads())

    def on_fit_start(self, *_: Any) -> None:
        self._watch.close()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.run.goes_on or not trainer.is_global_zero:
            return
        project = Project(trainer, pl_module, self._loads)
        long = n_iterations(project) >= _LONG
        for finding in run_checks(project, AT_START, own=False).findings:
            if long or finding.check != "settings":
                print(*_lines(finding, type(pl_module).__name__), sep="\n", file=sys.stderr)


def _lines(finding: Finding, module: str) -> list[str]:
    return [
        f"warning: {finding.evidence}: {finding.cause}",
        f"    {finding.remedy}. If it is meant: "
        f'`silenced_checks = {{"{finding.name}": "the reason"}}` in {module}',
    ]
