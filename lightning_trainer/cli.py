"""SessionCLI: the command line, the session folder and the restart.

python cli.py fit --config configs/digits.yaml
python cli.py fit --ckpt_path experiments/session_...
"""

import contextlib
import logging
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lightning_trainer.callbacks import all_callbacks
from lightning_trainer.checkpoint_io import AtomicCheckpointIO
from lightning_trainer.data import BaseDataModule
from lightning_trainer.environment import describe_environment, uncommitted_changes
from lightning_trainer.launch import is_first_process, n_processes, random_seed
from lightning_trainer.loggers import MetricsFile, SessionTensorBoard
from lightning_trainer.module import BaseModule
from lightning_trainer.parser import SessionParser, help_texts, root_cause
from lightning_trainer.restart import Restart, configs_first, dump_settings, find_option
from lightning_trainer.session import Session, check_tag, differences
from lightning_trainer.terminal import TerminalLog

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

    def __init__(self, args: ArgsType = None, stack: contextlib.ExitStack | None = None) -> None:
        self._stack = stack
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

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Puts our description of each command into the list of them."""
        super().setup_parser(*args, **kwargs)
        self.parser.describe_commands()

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
        super().add_default_arguments_to_parser(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Reads a session's stored settings, then config files, then single options."""
        argv = sys.argv[1:] if args is None else [str(a) for a in args]  # type: ignore[union-attr]
        command = next((word for word in argv if word in self.subcommands()), "")
        path = find_option(argv, "--ckpt_path")
        try:
            if path and command:
                new_session = find_option(argv, "--config", "-c") is not None
                self.restart = Restart.find(path, command, new_session)
            argv = configs_first(argv)
            with _as_file(self.restart.config if self.restart else {}) as stored:
                self.config = parser.parse_args([*argv[:1], *stored, *argv[1:]])
            config = self.config[self.config.subcommand]
            if config.ckpt_path and not self.restart:  # a config file names it
                self.restart = Restart.find(
                    config.ckpt_path, self.config.subcommand, new_session=True
                )
            self._check(config)
        except (OSError, ValueError) as ex:
            parser.error(str(ex))
        # Else Lightning lets the checkpoint's hyper-parameters win over the command line.
        config.ckpt_path = None
        if isinstance(config.seed_everything, bool):
            config.seed_everything = random_seed()

    def before_instantiate_classes(self) -> None:
        """Makes or reopens the session folder; from here on the terminal is in log.txt."""
        config = self.config[self.subcommand]
        rank = int(os.environ.get("LOCAL_RANK", 0))
        goes_on = self.restart.session if self.restart else None
        if rank > 0 and _SESSION_VARIABLE in os.environ:
            self.session = Session(os.environ[_SESSION_VARIABLE])
        elif not is_first_process():
            self.session = Session()  # ShareSession will tell
        else:
            self.session = goes_on or Session.create(config.output_path, config.tag)
            os.environ[_SESSION_VARIABLE] = str(self.session.path)
            if self._stack is not None:
                self._stack.callback(os.environ.pop, _SESSION_VARIABLE, None)
        if self.session.path.name:
            terminal = TerminalLog(self.session.log(rank))
            terminal.start()
            if self._stack is not None:
                self._stack.callback(terminal.stop)
        if self.restart:
            config.ckpt_path = str(self.restart.checkpoint)
        if is_first_process():
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
        own_loggers = [cls(self.session, purge_step) for cls in (SessionTensorBoard, MetricsFile)]
        callbacks = all_callbacks(
            self.session,
            self.settings,
            config.save_minutes,
            checkpoints=trainer.enable_checkpointing is not False and not trainer.fast_dev_run,
            added=_as_list(trainer.callbacks),
        )
        return super().instantiate_trainer(
            logger=[*own_loggers, *_as_list(trainer.logger)],
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO(), *_as_list(trainer.plugins)],
            default_root_dir=trainer.default_root_dir or str(self.session.path),
            **kwargs,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting as resolved, as plain types; what config.yaml holds."""
        dumped = self.parser.dump(self.config, skip_none=False)
        settings: dict[str, Any] = yaml.safe_load(dumped)[self.subcommand]
        return {name: value for name, value in settings.items() if name not in _NOT_OF_FIT}

    def _check(self, config: Any) -> None:
        """Refuses what can be seen to fail before there is a folder."""
        check_tag(config.tag)
        if not config.output_path:
            raise ValueError("`output_path` is empty: give the folder that holds the sessions")
        if not isinstance(config.trainer, Namespace):
            raise ValueError(f"`trainer` is {config.trainer!r}: it must be a group of settings")
        done, wanted = self.restart.iteration if self.restart else 0, config.trainer.max_steps
        left = wanted < 0 or done < wanted
        if self.restart and not self.restart.validated:
            left |= done == wanted
        if self.config.subcommand == "fit" and not left:
            raise ValueError(
                f"nothing left to do: iteration {done} of {wanted} is reached. To go on, raise "
                f"`--trainer.max_steps` above {done}"
            )
        interval = config.trainer.val_check_interval
        if isinstance(interval, float) and config.trainer.check_val_every_n_epoch is None:
            raise ValueError(
                f"`trainer.val_check_interval` is {interval}, a part of an epoch: set "
                "`trainer.check_val_every_n_epoch: 1` as well, or give a whole number of iterations"
            )

    def _announce(self) -> None:
        restart = self.restart
        for path in restart.passed_over if restart else ():
            print(f"{path} is truncated or damaged: passed over", file=sys.stderr)
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
            changes = differences(self.restart.config, settings)
        self.session.write_config(dump_settings(settings))
        changes += self.session.record_environment(
            describe_environment(n_processes(settings["trainer"]), self.session.path.parent),
            uncommitted_changes(self.session.path.parent),
        )
        if changes:
            print("What differs from before:", *changes, sep="\n    ", flush=True)


def main(args: ArgsType = None) -> None:
    """Runs the command line; what a user can cause ends in one line and a non-zero exit code."""
    with contextlib.ExitStack() as stack:
        try:
            with _quiet():
                SessionCLI(args, stack)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as ex:
            # Printed here, while the terminal still goes into log.txt.
            cause = root_cause(ex)
            if _is_explained(cause):
                print(f"error: {cause}", file=sys.stderr)
            else:
                traceback.print_exception(cause)
            sys.exit(1)


def _is_explained(ex: BaseException) -> bool:
    """Whether the layer raised it on purpose, or the project did before the first batch.

    Then the message says it all. Everything else is a fault in code, whose traceback matters.
    """
    frames = traceback.extract_tb(ex.__traceback__)
    if not frames or not (frames[-1].line or "").lstrip().startswith("raise "):
        return False
    files = [Path(frame.filename) for frame in frames]
    own, lightning = Path(__file__).parent, Path(pl.__file__).parent
    running = any(file.is_relative_to(lightning / "loops") for file in files)
    installed = "site-packages" in files[-1].parts
    return files[-1].is_relative_to(own) or not (running or installed)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Lightning's chatter and warnings that are known to be harmless from the user."""
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
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


_HARMLESS = (
    # The summary says it where data really is slow.
    ".*does not have many workers which may be a bottleneck",
    # Lines are by iteration, whatever the length of an epoch.
    ".*is smaller than the logging interval",
    # Lightning's use of torch, which a project can't change.
    ".*isinstance.treespec, LeafSpec.. is deprecated",
    ".*functional.all_gather is deprecated",
    # Results are already those of all processes.
    ".*recommended to use `self.log.*sync_dist=True",
)


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


def _as_list(value: Any) -> list[Any]:
    """What the config names, as a list; true and false stand for nothing."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
