"""SessionCLI: the command line, the session folder and the restart.

python cli.py fit --config configs/digits.yaml
python cli.py fit --ckpt_path experiments/session_...
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import yaml
from jsonargparse.typing import PositiveFloat
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_trainer.base.data import BaseDataModule
from lightning_trainer.base.module import BaseModule
from lightning_trainer.checkpoints.files import AtomicCheckpointIO
from lightning_trainer.checkpoints.restart import Restart
from lightning_trainer.commands.options import option_values, split_configs
from lightning_trainer.internals import (
    skip_empty_hooks,
    without_asking_for_gpus,
    without_profiler,
)
from lightning_trainer.report.loggers import MetricsFile, SessionTensorBoard
from lightning_trainer.run.state import RunState
from lightning_trainer.session.checkpoint_header import reach
from lightning_trainer.session.environment import (
    describe_environment,
    job_id,
    shown_command,
    uncommitted_changes,
)
from lightning_trainer.session.folder import Session
from lightning_trainer.session.lock import SessionLock
from lightning_trainer.session.secrets import scrub, secret_texts
from lightning_trainer.session.settings import differences, dump_settings
from lightning_trainer.session.terminal import TerminalLog
from lightning_trainer.start.callbacks import all_callbacks
from lightning_trainer.start.failure import FILE_NAME, report_failure
from lightning_trainer.start.launch import (
    end_with_parent,
    is_first_process,
    layout,
    n_processes,
    random_seed,
)
from lightning_trainer.start.parser import SessionParser, help_texts
from lightning_trainer.start.quiet import quiet
from lightning_trainer.start.setting_checks import check_settings

# Tells the folder to the processes that Lightning starts on this machine.
_SESSION_VARIABLE = "LIGHTNING_TRAINER_SESSION"

# Options of the other commands, which `fit --config` on their session would not accept.
_NOT_OF_FIT = ("verbose", "return_predictions")

_TRAINER_DEFAULTS = {
    "max_steps": 10_000,
    "max_epochs": -1,
    "val_check_interval": 500,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": 100,
    # The log lines, the parameter count and TensorBoard's table of runs are the layer's own.
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_autolog_hparams": False,
}


class SessionCLI(LightningCLI):
    """LightningCLI with a session folder for each run.

    Order of a start: parse -> make or reopen the folder -> terminal into log.txt -> config.yaml and
    environment.yaml -> project's classes -> trainer -> run.

    Args:
        args: Command line without the program's name; by default that of the process.
        stack: Gets what gives the terminal back; without it that happens when the process ends.
    """

    parser: SessionParser
    session: Session
    restart: Restart | None = None
    _is_guest = False  # whether the folder belongs to another process, which is living

    def __init__(self, args: ArgsType = None, stack: contextlib.ExitStack | None = None) -> None:
        self._stack = stack
        self._first_words = _as_argv(args)[:1]
        try:
            super().__init__(
                BaseModule,
                BaseDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                auto_configure_optimizers=False,
                trainer_defaults=_TRAINER_DEFAULTS,
                seed_everything_default=0,
                parser_class=SessionParser,
                # No abbreviations: `--trainer.max_step 3` would silently set max_steps.
                parser_kwargs={"allow_abbrev": False, **help_texts()},
                args=args,
            )
        except Exception as ex:
            # Printed here, while the terminal still goes into log.txt.
            folder = self.session.path if hasattr(self, "session") else None
            report_failure(ex, folder, getattr(self, "trainer", None))
            sys.exit(1)

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Leaves out the commands that are not asked for."""
        commands = self.subcommands()
        asked = {word: commands[word] for word in self._first_words if word in commands}
        if asked:  # to find the options of the others takes 0.1 s each
            self.subcommands = lambda: asked  # type: ignore[method-assign]
        super().setup_parser(*args, **kwargs)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of the session, above Lightning's long list."""
        parser.add_argument("--tag", type=str, default="run", help="Name of the experiment.")
        parser.add_argument(
            "--output_path",
            type=str,
            default="experiments",
            help="Folder that holds the session folders.",
        )
        parser.add_argument(
            "--save_minutes",
            type=float,
            default=10.0,
            help="Write last.ckpt at least this often, in minutes.",
        )
        parser.add_argument(
            "--on_non_finite",
            type=Literal["stop", "skip"],
            default="stop",
            help="When the loss is no number: end the run, or go back to last.ckpt and go on.",
        )
        parser.add_argument(
            "--timeout_minutes",
            type=PositiveFloat,
            default=30.0,
            help="How long processes wait for one that does not start or answer.",
        )
        super().add_default_arguments_to_parser(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Reads a session's stored settings, then config files, then single options."""
        argv = _as_argv(args)
        command = next((word for word in argv if word in self.subcommands()), "")
        paths = option_values(argv, "--ckpt_path")
        try:
            if any(paths[-1:]) and command:
                new_session = bool(option_values(argv, "--config", "-c"))
                self.restart = Restart.find(paths[-1], command, new_session)
            self._parse(argv)
            self._command = shown_command(argv, secret_texts(self._resolved()))
            if command == "fit" and not any(paths[-1:]):
                self.restart = self._of_requeued_job()
                if self.restart:
                    self._parse(argv)
            config = self.config[self.config.subcommand]
            if config.ckpt_path and not self.restart:  # a config file names it
                self.restart = Restart.find(
                    config.ckpt_path, self.config.subcommand, new_session=True
                )
            check_settings(config, self.config.subcommand, self.restart)
        except (OSError, ValueError) as ex:
            parser.error(str(ex))
        # Else Lightning lets the checkpoint's hyper-parameters win over the command line.
        config.ckpt_path = None
        if isinstance(config.seed_everything, bool):
            stored = self.restart.config if self.restart else {}
            config.seed_everything = stored.get("seed_everything", random_seed())

    def _parse(self, argv: list[str]) -> None:
        files, rest = split_configs(argv)
        with _as_file(self.restart.config if self.restart else {}) as stored:
            # Single options win over files, wherever they stand.
            self.config = self.parser.parse_args([*rest[:1], *stored, *files, *rest[1:]])
        try:
            self.parser.validate(self.config, skip_unset=False)  # parsing lets null through
        except TypeError as ex:
            self.parser.error(str(ex), ex)

    def _of_requeued_job(self) -> Restart | None:
        """What to go on from, where SLURM starts a job again with the same command line."""
        if int(os.environ.get("SLURM_RESTART_COUNT", 0)) == 0:
            return None
        config = self.config.fit
        session = Session.of_job(config.output_path, job_id(), self._command)
        if session is None:
            return None
        try:
            restart = Restart.find(str(session.path), "fit", new_session=False)
        except (OSError, ValueError):  # stopped before its first checkpoint
            return None
        if not restart.is_before(config.trainer.max_steps):
            # A job of several runs meets those again that it has done.
            print(f"{session.path} has ended before: nothing left to do")
            sys.exit(0)
        return restart

    def before_instantiate_classes(self) -> None:
        """Makes or reopens the session folder; from here on the terminal is in log.txt."""
        config = self.config[self.subcommand]
        rank = int(os.environ.get("LOCAL_RANK", 0))
        goes_on = self.restart.session if self.restart else None
        if rank > 0 and _SESSION_VARIABLE in os.environ:
            self.session = Session(os.environ[_SESSION_VARIABLE])
            end_with_parent()
        elif not is_first_process():
            self.session = Session()  # ShareSession will tell
        else:
            self.session = goes_on or Session.create(config.output_path, config.tag)
            self._lock_folder()
            os.environ[_SESSION_VARIABLE] = str(self.session.path)
            if self._stack is not None:
                self._stack.callback(os.environ.pop, _SESSION_VARIABLE, None)
        if self.session.path.name and not self._is_guest:
            terminal = TerminalLog(self.session.log(rank))
            terminal.start()
            if self._stack is not None:
                self._stack.callback(terminal.stop)
        if self.restart:
            config.ckpt_path = str(self.restart.checkpoint)
        if is_first_process():
            if not self._is_guest:
                self.session.path.joinpath(FILE_NAME).unlink(missing_ok=True)
            self._announce()
            if self.subcommand == "fit" or not goes_on:
                self._record()
        if "verbose" in config:
            config.verbose = False  # Lightning's table would repeat what ReportEvaluation prints

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Adds the session's loggers, callbacks and checkpoint writing to what the config names."""
        config = self.config_init[self.subcommand]
        trainer = config.trainer
        goes_on = self.subcommand == "fit" and self.restart and self.restart.session
        purge_step = self.restart.iteration + 1 if self.restart and goes_on else None
        own_loggers: list[Logger] = [DummyLogger()]
        if not self._is_guest:
            own_loggers = [
                log(self.session, purge_step) for log in (SessionTensorBoard, MetricsFile)
            ]
        if trainer.devices == "auto" and trainer.num_nodes == 1:
            kwargs |= layout()
        if trainer.strategy == "auto" and n_processes(self.settings["trainer"]) > 1:
            timeout = timedelta(minutes=config.timeout_minutes)
            kwargs["strategy"] = DDPStrategy(gradient_as_bucket_view=True, timeout=timeout)
        run = RunState(
            self.session,
            self.settings,
            config.save_minutes,
            config.on_non_finite,
            saves=trainer.enable_checkpointing is not False and not trainer.fast_dev_run,
            restored_iteration=self.restart.iteration if self.restart else 0,
        )
        if trainer.profiler is None:
            kwargs["profiler"] = without_profiler()
        try:
            made = super().instantiate_trainer(
                logger=[*own_loggers, *_as_list(trainer.logger)],
                callbacks=all_callbacks(run, _as_list(trainer.callbacks)),
                plugins=[AtomicCheckpointIO(), *_slurm(), *_as_list(trainer.plugins)],
                default_root_dir=trainer.default_root_dir or str(self.session.path),
                **kwargs,
            )
        except TypeError as ex:  # Lightning takes any value for some of its keys
            raise ValueError(f"a value in `trainer` is of a wrong kind: {ex}") from ex
        run.attach(made)
        skip_empty_hooks(made.callbacks)  # type: ignore[attr-defined]
        profiler: Any = made.profiler  # type: ignore[attr-defined]
        if trainer.profiler is not None and not profiler.filename and not self._is_guest:
            profiler.filename = "profile"  # into the session folder; else it would only be printed
        return made

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting as resolved, as plain types, without secrets; what config.yaml holds."""
        return dict(scrub(self._resolved()))

    def _resolved(self) -> dict[str, Any]:
        dumped = self.parser.dump(self.config, skip_none=False)
        settings: dict[str, Any] = yaml.safe_load(dumped)[self.config.subcommand]
        return {name: value for name, value in settings.items() if name not in _NOT_OF_FIT}

    def _lock_folder(self) -> None:
        """Keeps other processes out of the folder; what only reads one in use leaves no trace."""
        restart, lock = self.restart, SessionLock(self.session.path)
        holder = lock.acquire(str(self.subcommand))
        if holder and self.subcommand != "fit":
            self._is_guest = True
            print(f"{self.session.path} is in use by {holder}: results are shown but not logged")
        elif holder:
            self.parser.error(
                f"{self.session.path} is in use by {holder}: wait until that ends, stop it, or "
                "start a new session with `--config`"
            )
        elif self._stack is not None:
            self._stack.callback(lock.release)
        going_on = restart if restart and restart.session and self.subcommand == "fit" else None
        # A run that ended since the checkpoint was read would lose the last rows of its files.
        if going_on and reach(going_on.checkpoint) != (going_on.iteration, going_on.validated):
            self.parser.error(f"{self.session.path} has gone on meanwhile: try again")

    def _announce(self) -> None:
        restart = self.restart
        for path in restart.passed_over if restart else ():
            print(f"{path}: passed over", file=sys.stderr)
        if restart is None:
            print(f"Session: {self.session.path}", flush=True)
        elif self.subcommand == "fit" and restart.session:
            print(f"Going on with {self.session.path} after iteration {restart.iteration}")
        else:
            print(f"Session: {self.session.path}")
            print(f"Checkpoint: {restart.checkpoint} (iteration {restart.iteration})", flush=True)

    def _record(self) -> None:
        """Writes what the run is, and tells what differs from before."""
        settings = self.settings
        changes: list[str] = []
        if self.restart and self.restart.session:
            settings["ckpt_path"] = None
            changes = differences(scrub(self.restart.config), settings)
        self.session.write_config(dump_settings(settings))
        sessions, secrets = self.session.path.parent, secret_texts(self._resolved())
        changes += self.session.record_environment(
            describe_environment(self._command, n_processes(settings["trainer"]), sessions),
            uncommitted_changes(sessions, secrets),
        )
        if changes:
            print("What differs from before:", *changes, sep="\n    ", flush=True)


def main(args: ArgsType = None) -> None:
    """Runs the command line; what a user can cause ends in one line and a non-zero exit code."""
    with contextlib.ExitStack() as stack:
        try:
            with quiet(), without_asking_for_gpus():
                SessionCLI(args, stack)
        except KeyboardInterrupt:
            sys.exit(130)
        except SIGTERMException:  # of Lightning, outside of training; its own exit code is 0
            sys.exit(143)
        except SystemExit as ex:
            # Lightning turns a Ctrl-C before and after training into its own exit code.
            if isinstance(ex.__context__, KeyboardInterrupt):
                sys.exit(130)
            raise


@contextlib.contextmanager
def _as_file(config: dict[str, Any]) -> Iterator[list[str]]:
    """The arguments that read `config` from a file."""
    if not config:
        yield []
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(dump_settings(config))
        yield ["--config", str(path)]


def _slurm() -> list[SLURMEnvironment]:
    """SLURM's environment, if it is there; StopOnSignal asks for the job to be queued again."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def _as_argv(args: ArgsType) -> list[str]:
    return sys.argv[1:] if args is None else [str(arg) for arg in args]  # type: ignore[union-attr]


def _as_list(value: Any) -> list[Any]:
    """What the config names, as a list; true and false stand for nothing."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
