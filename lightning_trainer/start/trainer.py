"""Adds the session's own parts to the trainer that the settings describe."""

from contextlib import ExitStack
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from lightning.pytorch.strategies import DDPStrategy

from lightning_trainer.checkpoints.files import AtomicCheckpointIO
from lightning_trainer.internals_of_hooks import without_profiler
from lightning_trainer.report.loggers import MetricsFile, SessionTensorBoard
from lightning_trainer.run.processes import Processes
from lightning_trainer.run.state import RunState
from lightning_trainer.session.folder import Session
from lightning_trainer.start.callbacks import all_callbacks
from lightning_trainer.start.launch import layout, n_processes
from lightning_trainer.start.opening import Request

DEFAULTS = {
    "max_steps": 10_000,
    "max_epochs": -1,
    "val_check_interval": 500,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": 100,
    # This library prints lines and parameter counts itself, and writes TensorBoard's table of runs.
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_autolog_hparams": False,
}


def run_state(
    config: Any, session: Session, request: Request, is_guest: bool, stack: ExitStack
) -> RunState:
    """The state that the callbacks share; `config` has objects in place of class paths."""
    restart = request.restart
    return RunState(
        session,
        request.settings,
        request.secrets,
        [name for group in request.left_out.values() for name in group],
        config.save_minutes,
        config.on_non_finite,
        saves=config.trainer.enable_checkpointing is not False and not config.trainer.fast_dev_run,
        fast_loop=config.fast_loop,
        is_guest=is_guest,
        is_sessions_own=not is_guest and request.records,
        predict_data=config.get("predict_data"),
        restored_iteration=restart.iteration if restart else 0,
        processes=Processes(timedelta(minutes=config.timeout_minutes)),
        at_end=stack.callback,
    )


def trainer_arguments(
    config: Any, run: RunState, request: Request, is_guest: bool
) -> dict[str, Any]:
    """Arguments of `pl.Trainer` that replace the settings of the same name in `config`."""
    trainer = config.trainer
    # StopOnSignal requeues a job instead of Lightning.
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    arguments: dict[str, Any] = {
        "logger": [*_loggers(run, request, is_guest), *_as_list(trainer.logger)],
        "callbacks": all_callbacks(run, _as_list(trainer.callbacks)),
        "plugins": [AtomicCheckpointIO(), *slurm, *_as_list(trainer.plugins)],
        "default_root_dir": trainer.default_root_dir or str(run.session.path),
    }
    if trainer.devices == "auto" and trainer.num_nodes == 1:
        arguments |= layout()
    if trainer.strategy == "auto" and n_processes(request.settings["trainer"]) > 1:
        arguments["strategy"] = DDPStrategy(gradient_as_bucket_view=True)
    if trainer.profiler is None:
        arguments["profiler"] = without_profiler()
    if trainer.deterministic:
        arguments["benchmark"] = False  # it picks kernels by their times, anew at each start
    return arguments


def keep_profile(trainer: Any) -> None:
    """Gives a profiler a file: without one it would only print."""
    if not trainer.profiler.filename:
        trainer.profiler.filename = "profile"


def _loggers(run: RunState, request: Request, is_guest: bool) -> list[Logger]:
    if is_guest:
        return [DummyLogger()]
    purge_step = run.restored_iteration + 1 if request.continued else None
    given = (run.session, purge_step, run.secrets)
    return [SessionTensorBoard(*given), MetricsFile(*given)]


def _as_list(value: Any) -> list[Any]:
    """A setting as a list; empty for null, true and false."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
