"""The built-in callbacks: one callback, one class, one file."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning.pytorch.callbacks import Callback

from lightning_trainer.checkpoints.carried import KeepTrainMetrics
from lightning_trainer.checkpoints.changed_settings import ApplyChangedSettings
from lightning_trainer.checkpoints.finite import GuardAgainstNonFinite, SumLosses
from lightning_trainer.checkpoints.inexact import WarnOfInexactRestart
from lightning_trainer.checkpoints.saving import SaveCheckpoints, SaveEnd
from lightning_trainer.checkpoints.stopping import StopOnSignal
from lightning_trainer.report.bar import EvaluationBar
from lightning_trainer.report.curves import DrawCurves
from lightning_trainer.report.evaluation import ReportEvaluation
from lightning_trainer.report.hyperparameters import LogHyperParameters
from lightning_trainer.report.outputs import WritePredictions
from lightning_trainer.report.progress import PrintProgress
from lightning_trainer.report.summary import Summarise
from lightning_trainer.report.visualise import CallVisualise
from lightning_trainer.run.processes import Agreement
from lightning_trainer.run.schedule import ValidationSchedule
from lightning_trainer.run.seeding import SeedEachStep
from lightning_trainer.run.sharing import ShareSession
from lightning_trainer.run.state import RunTimes
from lightning_trainer.session.folder import Session


def all_callbacks(
    session: Session,
    config: Mapping[str, Any],
    save_minutes: float,
    on_non_finite: Literal["stop", "skip"] = "stop",
    checkpoints: bool = True,
    added: Sequence[Callback] = (),
) -> list[Callback]:
    """The built-in ones and the project's, in the order in which Lightning shall call them.

    Args:
        session: The run's folder.
        config: The run's settings as plain types.
        save_minutes: At most so many minutes of training are lost at a crash.
        on_non_finite: What to do when the loss is not finite.
        checkpoints: Whether any are written.
        added: Those of the project: they come before what ends a batch by saving.
    """
    times = RunTimes()
    agreement = Agreement()
    schedule = ValidationSchedule()
    report = ReportEvaluation()
    losses = SumLosses(agreement)
    guard = GuardAgainstNonFinite(losses, agreement, session, on_non_finite)
    saving = None
    if checkpoints:
        saving = SaveCheckpoints(
            session, config, schedule, report, times, agreement, guard, save_minutes
        )
    return [
        ShareSession(session, agreement),
        SeedEachStep(),
        KeepTrainMetrics(agreement),
        losses,
        schedule,
        ApplyChangedSettings(),
        WarnOfInexactRestart(),
        PrintProgress(times, losses, guard),
        guard,
        report,
        EvaluationBar(),
        CallVisualise(),
        LogHyperParameters(session, config, report),
        DrawCurves(session, report),
        WritePredictions(session),
        Summarise(session, schedule, report, times),
        *([SaveEnd(saving)] if saving else []),
        *added,
        StopOnSignal(agreement, saving),
        *([saving] if saving else []),
    ]
