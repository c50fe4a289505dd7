"""The callbacks of a run, in the order in which Lightning calls them."""

from collections.abc import Sequence

from lightning.pytorch.callbacks import Callback

from lightning_trainer.check.at_start import WarnOfMistakes
from lightning_trainer.checkpoints.beginning import BeginModel
from lightning_trainer.checkpoints.carried import KeepMetrics
from lightning_trainer.checkpoints.changed_settings import ApplyChangedSettings
from lightning_trainer.checkpoints.early import GoOnAfterEarlyStopping
from lightning_trainer.checkpoints.finite import GuardAgainstNonFinite
from lightning_trainer.checkpoints.inexact import WarnOfInexactRestart
from lightning_trainer.checkpoints.logged import KeepLogged
from lightning_trainer.checkpoints.saving import SaveCheckpoints, SaveEnd
from lightning_trainer.checkpoints.stopping import StopOnSignal
from lightning_trainer.checkpoints.trainable import KeepTrainable
from lightning_trainer.report.bar import EvaluationBar
from lightning_trainer.report.curves import DrawCurves
from lightning_trainer.report.evaluation import ReportEvaluation
from lightning_trainer.report.first_guess import GuessValidation
from lightning_trainer.report.hyperparameters import LogHyperParameters
from lightning_trainer.report.notify import TellOfBest
from lightning_trainer.report.outputs import WritePredictions
from lightning_trainer.report.progress import PrintProgress
from lightning_trainer.report.recording import RecordRun
from lightning_trainer.report.starting import TellOfStart
from lightning_trainer.report.summary import Summarise
from lightning_trainer.report.usage import MeasureUse
from lightning_trainer.report.visualise import CallVisualise
from lightning_trainer.run.buckets import SettleBuckets
from lightning_trainer.run.epochs import ResumeEpoch
from lightning_trainer.run.garbage import CollectGarbage
from lightning_trainer.run.keep import KeepState
from lightning_trainer.run.last_batch import WarnOfLastBatch
from lightning_trainer.run.loaders import FollowLoaders
from lightning_trainer.run.looping import ChooseLoop
from lightning_trainer.run.memory import ReuseMemory
from lightning_trainer.run.rows import PlaceRows
from lightning_trainer.run.schedule import ValidationSchedule
from lightning_trainer.run.seeding import SeedEachStep
from lightning_trainer.run.sharing import ShareSession
from lightning_trainer.run.state import RunState
from lightning_trainer.run.waiting import NameWaitingMetrics
from lightning_trainer.start.failure import SkipTeardown
from lightning_trainer.start.watching import WatchOthers


def all_callbacks(run: RunState, added: Sequence[Callback] = ()) -> list[Callback]:
    """The built-in callbacks of a run, and the project's (`added`)."""
    return [*_before_added(run), *added, *_after_added(run)]


def _before_added(run: RunState) -> list[Callback]:
    return [
        ShareSession(run),  # first: all others need the folder and the seed
        KeepState(run),  # before the readers of the iteration, and before others add their state
        ResumeEpoch(run),  # before the readers of the epoch and of the loader
        FollowLoaders(run),  # after the state of loaders is restored
        SeedEachStep(run),  # before anything draws
        PlaceRows(run),  # before anything is logged
        ChooseLoop(run),  # before the first batch: any place would do
        SettleBuckets(run),  # before the first step: any place would do
        KeepMetrics(run),  # adds to the state that KeepState has begun
        KeepLogged(run),  # before the first checkpoint
        KeepTrainable(run),  # before the first checkpoint
        ValidationSchedule(run),  # before the log line, which shows the time left
        WarnOfLastBatch(run),  # after ValidationSchedule has counted the iterations
        ApplyChangedSettings(run),  # before the log line, which tells the learning rate
        GoOnAfterEarlyStopping(run),  # before the first validation: any place would do
        WarnOfInexactRestart(run),  # before the first line of the run that goes on
        NameWaitingMetrics(run),  # watches one batch: any place would do
        GuessValidation(run),  # before others take the time of a batch of the sanity check
        PrintProgress(run),  # ends the step's time before others take theirs
        GuardAgainstNonFinite(run),  # before a useless validation
        ReportEvaluation(run),  # finds the best score before others use it
        TellOfStart(run),  # sees the first hook of a step: any place would do
        EvaluationBar(run),  # below the title that ReportEvaluation prints
        CallVisualise(run),  # after the time of the step is taken
        *([SaveEnd(run)] if run.saves else []),  # before a project's callback changes the weights
        LogHyperParameters(run),  # marks the run as successful once its end is saved
        DrawCurves(run),  # draws the numbers that are logged by now
        TellOfBest(run),  # of the score that ReportEvaluation has found
        WritePredictions(run),  # alone in `predict`: any place would do
        MeasureUse(run),  # before Summarise and RecordRun tell of it
        Summarise(run),  # refuses a run with nothing to do before anything is written
        RecordRun(run),  # after Summarise has refused a run: its record stays
        ReuseMemory(run),  # before the first batch: any place would do
        CollectGarbage(run),  # after PrintProgress: where there is a new line
        WarnOfMistakes(run),  # before the model loads anything: any place would do
        BeginModel(run),  # before a project's callback looks at the model
    ]


def _after_added(run: RunState) -> list[Callback]:
    """Among them the checkpoint of a batch, after all that others do with it."""
    return [
        StopOnSignal(run),  # at the end of an iteration
        WatchOthers(run),  # its thread sees no hooks: any place would do
        SkipTeardown(run),  # after all that tells of the end, before SaveCheckpoints waits
        *([SaveCheckpoints(run)] if run.saves else []),  # Lightning moves a Checkpoint to the end
    ]
