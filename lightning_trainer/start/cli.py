"""Starts a run from its command line: python cli.py fit --config configs/digits.yaml."""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_trainer.base.data import BaseDataModule
from lightning_trainer.base.hook_checks import require_begun
from lightning_trainer.base.module import BaseModule
from lightning_trainer.checkpoints.early import NotingTrainer
from lightning_trainer.checkpoints.restart import Restart
from lightning_trainer.commands.options import CommandLine
from lightning_trainer.internals import root_cause, set_timeout
from lightning_trainer.internals_of_hooks import skip_empty_hooks
from lightning_trainer.internals_of_loading import load_safely
from lightning_trainer.run.state import RunState
from lightning_trainer.session.environment import is_first_process, shown_command
from lightning_trainer.session.folder import Session
from lightning_trainer.session.run_record import note_failure
from lightning_trainer.session.secret_forms import known_forms
from lightning_trainer.session.secrets import secret_texts
from lightning_trainer.session.settings import dump_settings, read_settings
from lightning_trainer.session.slow_start import begin_step, watch_start
from lightning_trainer.session.terminal import keep_log
from lightning_trainer.start.defaults import config_texts, hyper_parameters, left_out, storable
from lightning_trainer.start.failure import FILE_NAME, end_at_once, failure_text, must_end_at_once
from lightning_trainer.start.finders import begin_search, keep_found, search_arguments
from lightning_trainer.start.given_back import hide_absent_gpus, keep_process
from lightning_trainer.start.launch import random_seed
from lightning_trainer.start.notifying import begin_notifying, take_wishes
from lightning_trainer.start.opening import Request, announce, open_folder, record, restart_of_job
from lightning_trainer.start.parser import (
    AS_SETTINGS,
    SessionParser,
    parser_arguments,
    session_options,
)
from lightning_trainer.start.quiet import quiet
from lightning_trainer.start.setting_checks import check_settings
from lightning_trainer.start.trainer import DEFAULTS, keep_profile, run_state, trainer_arguments

# Options of other commands, which `fit --config` with their session's settings would refuse.
_NOT_OF_FIT = ("verbose", "return_predictions", "predict_data")


class SessionCLI(LightningCLI):
    """LightningCLI with a session folder for each run.

    Lightning calls the methods below in their order: options -> parse -> folder -> project's
    classes -> trainer -> run. `stack` gets the callbacks that give terminal and folder back.
    """

    parser: SessionParser
    kind_of_parser = SessionParser
    session: Session
    restart: Restart | None = None
    request: Request
    state: RunState | None = None  # None before the trainer is made
    _secrets: Sequence[str] = ()  # texts that nothing in the session may show
    _kept: Sequence[str] = ()  # lines on the settings that tuner callbacks have found before
    _searches = False  # whether the trainer is one in which tuner callbacks search
    _notifier: Any = None  # where the command line asks for messages
    is_called = False  # whether Python has called for the run
    is_guest = False  # whether another process is using the folder

    def __init__(self, argv: list[str], stack: contextlib.ExitStack) -> None:
        self._wishes, argv = take_wishes(argv)
        self._argv, self._line, self._stack = argv, CommandLine.read(argv), stack
        try:
            super().__init__(
                BaseModule,
                BaseDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                auto_configure_optimizers=False,
                trainer_defaults=DEFAULTS,
                seed_everything_default=0,
                parser_class=self.kind_of_parser,
                parser_kwargs=parser_arguments(self._line.command),
                args=argv,
            )
        except Exception as ex:
            # The first error counts: a callback or Lightning may have raised another one after it.
            self._fail((self.state and self.state.failure) or ex)

    def _fail(self, ex: Exception) -> NoReturn:
        """Notes an error, and tells it while the terminal still goes into log.txt."""
        folder = self.session.path if hasattr(self, "session") else None
        trainer = getattr(self, "trainer", None)
        text = failure_text(ex, folder, trainer, self._secrets)
        writes = is_first_process() and not self.is_guest
        if folder is not None and writes and self.request.records:
            note_failure(folder, self.request.command, root_cause(ex), self._secrets)
        if self.state and trainer and must_end_at_once(ex, trainer, self.is_called):
            print(text, end="", file=sys.stderr, flush=True)
            end_at_once(trainer, self.state, self._stack)
        self.end_failed(text, root_cause(ex))

    def end_failed(self, text: str, cause: BaseException) -> NoReturn:
        """Ends the command."""
        print(text, end="", file=sys.stderr, flush=True)
        sys.exit(1)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the typed command: finding the options of another takes 0.1 s."""
        return {self._line.command: super().subcommands()[self._line.command]}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of the session, above Lightning's long list."""
        for name, kind, default, text in session_options(self._line.command):
            parser.add_argument(f"--{name}", type=kind, default=default, help=text)
        super().add_default_arguments_to_parser(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Reads the session's stored settings, config files and single options; later ones win."""
        line = self._line
        try:
            if line.ckpt_path:
                self.restart = Restart.find(line.ckpt_path, line.command, bool(line.configs))
            begin_step("the import of the project, and its settings")
            self._parse()
            self._secrets = secret_texts(self._resolved())
            self._typed = shown_command(self._argv, self._secrets)
            if line.command == "fit" and not line.ckpt_path:
                self.restart = restart_of_job(self.config.fit, self._typed)
                if self.restart:
                    self._parse()
            config = self.config[self.config.subcommand]
            if config.ckpt_path and not self.restart:  # a config file names it
                self.restart = Restart.find(config.ckpt_path, line.command, new_session=True)
            check_settings(config, line.command, self.restart, self._secrets)
            if self.restart:
                self._kept = keep_found(config, self.restart)
        except (OSError, ValueError) as ex:
            parser.error(str(ex))
        # With a path here, Lightning would prefer the checkpoint's hyper-parameters.
        config.ckpt_path = None
        if isinstance(config.seed_everything, bool):
            stored = self.restart.config if self.restart else {}
            config.seed_everything = stored.get("seed_everything", random_seed())

    def _parse(self) -> None:
        line, stored = self._line, self.restart.config if self.restart else {}
        files = [f"--config={text}" for text in config_texts(line, stored)]
        # What a session folder holds must not name an address to read more from.
        set_parsing_settings(config_read_mode_fsspec_enabled=not stored)
        # Single options come last: they win over files.
        self.parser.refuses_null = True
        self.config = self.parser.parse_args([line.command, *files, *line.others])

    def _resolved(self) -> dict[str, Any]:
        """Every setting as plain types, with secrets."""
        how: dict[str, Any] = {"format": AS_SETTINGS, "skip_unset": False, "skip_validation": True}
        dumped = self.parser.dump(storable(self.config), **how)
        settings: dict[str, Any] = read_settings(dumped)[self.config.subcommand]
        return {name: value for name, value in settings.items() if name not in _NOT_OF_FIT}

    def before_instantiate_classes(self) -> None:
        """Opens the session folder, and copies the terminal to log.txt from here on."""
        config, restart = self.config[self.subcommand], self.restart
        if restart:
            config.ckpt_path = str(restart.checkpoint)
        if config.matmul_precision:  # else a project's file may have set it
            torch.set_float32_matmul_precision(config.matmul_precision)
        if "verbose" in config:
            config.verbose = False  # Lightning's table would repeat ReportEvaluation's
        request = self._make_request()
        try:
            self.session, self.is_guest = open_folder(request, self._stack)
        except ValueError as ex:
            self.parser.error(str(ex))
        if self.session.path.name:
            log = self.session.log(int(os.environ.get("LOCAL_RANK", 0)))
            known = known_forms(request.secrets)
            self._stack.callback(keep_log(os.devnull if self.is_guest else log, known))
        if is_first_process():
            if not self.is_guest:
                self.session.path.joinpath(FILE_NAME).unlink(missing_ok=True)
            announce(self.session, request)
            print(*(f"{line}\n" for line in self._kept), sep="", end="", flush=True)
            if request.records:
                record(self.session, request)
                self._notifier = begin_notifying(self._wishes, self.session, request, self._stack)

    def _make_request(self) -> Request:
        resolved, config = self._resolved(), self.config[self.subcommand]
        left = left_out(config, resolved)
        self.request = Request(str(self.subcommand), self._typed, resolved, self.restart, left)
        self.config_dump = hyper_parameters(resolved, left)
        return self.request

    def instantiate_classes(self) -> None:
        """Lets tuner callbacks search first, with objects that are made for that alone."""
        config = self.config[self.subcommand]
        is_first = self.subcommand == "fit" and not self.restart
        if end_search := begin_search(config) if is_first else None:
            self._searches = True
            super().instantiate_classes()
            self.trainer.fit(self.model, datamodule=self.datamodule)
            end_search(self.config_init.fit.trainer.callbacks)
            self._searches = False
            pl.seed_everything(config.seed_everything, workers=True, verbose=False)
            request = self._make_request()
            self.session.write_config(dump_settings(request.settings), secrets=request.secrets)
        super().instantiate_classes()
        require_begun(self.model, self.datamodule)
        begin_step("`prepare_data`" if self.trainer.world_size == 1 else "the other processes")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Adds the session's loggers, callbacks and checkpoint writing to the config's own."""
        config = self.config_init[self.subcommand]
        run = run_state(config, self.session, self.request, self.is_guest, self._stack)
        if self._searches:
            arguments = search_arguments(run, config.trainer.callbacks)
            return super().instantiate_trainer(**arguments, **kwargs)
        own = trainer_arguments(config, run, self.request, self.is_guest)
        self.trainer_class = NotingTrainer
        try:
            trainer = super().instantiate_trainer(**own, **kwargs)
        except TypeError as ex:  # Lightning takes any value for some of its keys
            raise ValueError(f"a value in `trainer` is of a wrong kind: {ex}") from ex
        run.attach(trainer)
        run.notifier, run.is_called, run.fail = self._notifier, self.is_called, self._fail
        set_timeout(trainer.strategy, run.processes.timeout)
        self.state = run
        run.at_end(run.writer.shutdown)
        run.at_end(skip_empty_hooks(trainer))
        run.at_end(load_safely(trainer))
        if config.trainer.profiler is not None and not self.is_guest:
            keep_profile(trainer)
        return trainer


def run_trainer(args: list[str], cli: type[SessionCLI] = SessionCLI) -> Session:
    """Runs the command line, and returns its session; turns signals into their exit codes."""
    with contextlib.ExitStack() as stack:
        try:
            keep_process(stack)
            quiet(stack)
            hide_absent_gpus(stack)
            stack.callback(watch_start())
            return cli(args, stack).session
        except KeyboardInterrupt:
            sys.exit(130)
        except SIGTERMException:  # Lightning raises it outside of training, and would exit with 0
            sys.exit(143)
        except SystemExit as ex:
            # Lightning has an exit code of its own for a Ctrl-C before and after training.
            if isinstance(ex.__context__, KeyboardInterrupt):
                sys.exit(130)
            raise
