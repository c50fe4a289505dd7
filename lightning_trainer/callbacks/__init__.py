"""The built-in callbacks: one callback, one class, one file."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.callbacks import Callback

from lightning_trainer.callbacks.bars import EvaluationBar
from lightning_trainer.callbacks.checkpoints import SaveCheckpoints
from lightning_trainer.callbacks.evaluation import ReportEvaluation
from lightning_trainer.callbacks.hyperparameters import LogHyperParameters
from lightning_trainer.callbacks.pictures import CallVisualise
from lightning_trainer.callbacks.predictions import WritePredictions
from lightning_trainer.callbacks.progress import PrintProgress
from lightning_trainer.callbacks.schedule import ValidationSchedule
from lightning_trainer.callbacks.seeding import SeedEachStep
from lightning_trainer.callbacks.settings import ApplyChangedSettings
from lightning_trainer.callbacks.sharing import ShareSession
from lightning_trainer.callbacks.stopping import StopOnSignal
from lightning_trainer.callbacks.summary import Summarise
from lightning_trainer.callbacks.times import RunTimes
from lightning_trainer.callbacks.train_metrics import KeepTrainMetrics
from lightning_trainer.session import Session


def all_callbacks(
    session: Session,
    config: Mapping[str, Any],
    save_minutes: float,
    checkpoints: bool = True,
    added: Sequence[Callback] = (),
) -> list[Callback]:
    """The built-in ones and the project's, in the order in which Lightning shall call them.

    Args:
        session: The run's folder.
        config: The run's settings as plain types.
        save_minutes: At most so many minutes of training are lost at a crash.
        checkpoints: Whether any are written.
        added: Those of the project: they come before what ends a batch by saving.
    """
    times = RunTimes()
    schedule = ValidationSchedule()
    report = ReportEvaluation()
    saving = None
    if checkpoints:
        saving = SaveCheckpoints(session, config, schedule, report, times, save_minutes)
    return [
        ShareSession(session),
        SeedEachStep(),
        KeepTrainMetrics(),
        schedule,
        ApplyChangedSettings(),
        PrintProgress(times),
        report,
        EvaluationBar(),
        CallVisualise(),
        LogHyperParameters(config, report),
        WritePredictions(session),
        Summarise(session, schedule, report, times),
        *added,
        StopOnSignal(saving),
        *([saving] if saving else []),
    ]
