"""Makes the model of a session with its best weights, outside of a run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_trainer.base.hook_checks import require_begun
from lightning_trainer.checkpoints.files import AtomicCheckpointIO
from lightning_trainer.internals_of_hooks import without_profiler
from lightning_trainer.python.running import PythonCLI, run_command
from lightning_trainer.start.cli import run_trainer
from lightning_trainer.start.export_command import make_plain


def load_module(path: str, device: Any) -> Any:
    """The module of a session or a checkpoint, in evaluation mode; raises as `run_command`."""

    def run() -> Any:
        try:
            run_trainer(["validate", f"--ckpt_path={path}"], _LoadingCLI)
        except _Made as made:
            return made.module.to(device).eval()

    return run_command(run)


class _Made(SystemExit):
    """Ends the command once it has made the module."""

    def __init__(self, module: Any) -> None:
        super().__init__(0)
        self.module = module


class _LoadingCLI(PythonCLI):
    """Makes the objects of `validate`, without a session folder to write to."""

    def before_instantiate_classes(self) -> None:
        config, restart = self.config.validate, self.restart
        assert restart is not None
        if restart.checkpoint.is_dir():
            raise ValueError(
                f"{restart.checkpoint} is a sharded checkpoint, which only `test` and `predict` "
                "read. One file of it: python -m torch.distributed.checkpoint.format_utils "
                f"dcp_to_torch {restart.checkpoint} weights.pt"
            )
        make_plain(config)

    def instantiate_classes(self) -> None:
        assert self.restart is not None
        try:
            module = self._make(with_trainer=False)
        except RuntimeError as ex:
            if "is not attached to a `Trainer`" not in f"{ex} {ex.__cause__}":
                raise
            module = self._make(with_trainer=True)
        checkpoint = AtomicCheckpointIO().load_checkpoint(self.restart.checkpoint)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading)
        raise _Made(module)

    def _make(self, with_trainer: bool) -> Any:
        """The module with its model: for one that asks for the trainer, with that and the data."""
        objects = self.config_init = self.parser.instantiate_classes(self.config)
        self.model, self.datamodule = objects.validate.model, objects.validate.data
        require_begun(self.model, self.datamodule)
        if with_trainer:
            trainer: Any = LightningCLI.instantiate_trainer(
                self, logger=[DummyLogger()], callbacks=[], profiler=without_profiler()
            )
            self.model.trainer = self.datamodule.trainer = trainer
            trainer.datamodule = self.datamodule
            self.datamodule.prepare_data()
            self.datamodule.setup("validate")
        self.model.setup("validate")
        self.model.configure_model()
        return self.model
