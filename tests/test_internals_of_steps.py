"""The direct loop does what Lightning's own does: hooks, arguments, counters, weights."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from conftest import run_process
from lightning.pytorch.callbacks import Callback, LambdaCallback
from lightning.pytorch.core.hooks import DataHooks, ModelHooks
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.exceptions import SIGTERMException
from restarts import copy_at, result, same
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_trainer.internals_of_hooks import CURRENT_HOOK
from lightning_trainer.internals_of_steps import DirectLoop, why_lightnings

STEP_HOOKS = [
    name
    for kind in (ModelHooks, DataHooks)
    for name in vars(kind)
    if name.startswith(("on_", "transfer")) and "dataloader" not in name
]


def seen(value: Any) -> Any:
    """An argument, so that two runs can be compared."""
    if isinstance(value, Tensor):
        return value.detach().tolist()
    if isinstance(value, dict):
        return {key: seen(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [seen(each) for each in value]
    return value if isinstance(value, int | float | str | None) else type(value).__name__


def counts(trainer: pl.Trainer) -> dict[str, Any]:
    """The counters that a checkpoint of this moment would have."""
    return seen(trainer.fit_loop.state_dict())


IN_VALIDATIONS = {"_evaluation_step", "_verify_dataloader_idx_requirement"}


def count_calls(loop: Any, calls: list[str]) -> None:
    """Notes that Lightning calls what is put in the place of its own methods."""
    for name in IN_VALIDATIONS:
        assert callable(getattr(type(loop), name))
        method = vars(loop)[name]
        vars(loop)[name] = lambda *args, n=name, m=method: (calls.append(n), m(*args))[1]


class Recorder(Callback):
    """Puts the direct loop in place if it is told to, and notes its own hooks."""

    def __init__(self, direct: bool) -> None:
        self.direct, self.calls = direct, []
        self.took_over = False
        self.validated: list[str] = []  # calls of what stands in the place of Lightning's own

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.direct:
            assert why_lightnings(trainer) == ""
            loop = DirectLoop(trainer)
            self.give_back = loop.install()
            epoch_loop = trainer.fit_loop.epoch_loop
            self.took_over = vars(epoch_loop)["run"] == loop.run
            count_calls(epoch_loop.val_loop, self.validated)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.direct:
            self.give_back()
            epoch_loop = trainer.fit_loop.epoch_loop
            assert "run" not in vars(epoch_loop)
            assert not IN_VALIDATIONS & vars(epoch_loop.val_loop).keys()


def _noting(name: str) -> Any:
    def hook(self: Recorder, trainer: pl.Trainer, pl_module: Any, *args: Any, **options: Any):
        named = vars(pl_module)[CURRENT_HOOK]
        self.calls.append(("callback", name, named, seen(args), seen(options), counts(trainer)))

    return hook


PARTS = ("_batch_", "on_before", "on_after", "_epoch_")
for _name in dir(Callback):
    if any(part in _name for part in PARTS):
        setattr(Recorder, _name, _noting(_name))


class Model(pl.LightningModule):
    """Every hook of a batch is overridden, calls its base and is noted."""

    n_batches = 7
    schedule = False

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 2))
        self.calls: list[Any] = []

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch["x"]), batch["label"])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.calls.append(("step", vars(self)[CURRENT_HOOK], batch_idx, counts(self.trainer)))
        return {"loss": self.loss(batch), "more": batch_idx}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimiser = torch.optim.Adam(self.parameters(), 1e-2)
        if not self.schedule:
            return optimiser
        schedule = torch.optim.lr_scheduler.StepLR(optimiser, 2, 0.5)
        return [optimiser], [{"scheduler": schedule, "interval": self.schedule}]

    def train_dataloader(self) -> Any:
        return self.loader()

    def val_dataloader(self) -> Any:
        return self.loader()

    def loader(self) -> Any:
        generator = torch.Generator().manual_seed(3)
        samples = [
            {"x": torch.randn(4, generator=generator), "label": i % 2, "i": torch.tensor(i)}
            for i in range(4 * self.n_batches)
        ]
        return DataLoader(samples, 4)


class Overriding(Model):
    pass


def _overriding(name: str) -> Any:
    def hook(self: Any, *args: Any, **options: Any) -> Any:
        entry = ("module", name, vars(self)[CURRENT_HOOK], seen(args), seen(options))
        self.calls.append((*entry, counts(self.trainer)))
        return getattr(super(Overriding, self), name)(*args, **options)

    return hook


for _name in (
    *STEP_HOOKS, "backward", "optimizer_step", "optimizer_zero_grad", "lr_scheduler_step",
    "configure_gradient_clipping",
):  # fmt: skip
    setattr(Overriding, _name, _overriding(_name))


class ByEpoch(Model):
    schedule = "epoch"


class ByStep(Model):
    schedule = "step"


class Plateau(Model):
    def configure_optimizers(self) -> Any:
        optimiser = torch.optim.SGD(self.parameters(), 1e-1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, patience=0)
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val/loss"},
        }


class WithoutIndex(Model):
    def training_step(self, batch: Any) -> Any:
        return self.loss(batch)


class Other(dict):
    pass


class OtherDict(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return Other(super().training_step(batch, batch_idx))


class Logging(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("a", loss, on_step=True, on_epoch=True)
        if batch_idx == 3:
            self.log("b", loss)
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        self.log("c", float(self.trainer.global_step), on_epoch=True)


class SometimesNone(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx % 3 == 1 else self.loss(batch)


class EndsEpochs(Model):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 4 else None


class Lbfgs(Model):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 2)

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), max_iter=3)


class Clipping(Model):
    def configure_gradient_clipping(self, optimizer: Any, **options: Any) -> None:
        self.clip_gradients(optimizer, 0.05, "value")


class ClippingBelow(Model):
    def clip_gradients(self, optimizer: Any, *args: Any, **options: Any) -> None:
        super().clip_gradients(optimizer, 0.05, "value")


class Stepping(Model):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
        optimizer.step(closure=closure)
        self.net[0].bias.data += 1e-3


class Transferring(Model):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "x": batch["x"] * 2}


class Nested(Model):
    def loss(self, batch: Any) -> Tensor:
        return super().loss(batch["inner"][0])

    def loader(self) -> Any:
        batches = [{"inner": (batch, ["text"])} for batch in super().loader()]
        return DataLoader(batches, None)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        for i in range(26):
            yield {"x": torch.full((4,), float(i)), "label": i % 2}


class Streaming(Model):
    def loader(self) -> Any:
        return DataLoader(Stream(), 4)


class Empty(Model):
    """A loader that gives None now and then."""

    def loader(self) -> Any:
        batches = [*super().loader()]
        return DataLoader(
            range(self.n_batches), None, collate_fn=lambda i: None if i == 2 else batches[i]
        )

    def val_dataloader(self) -> Any:
        return super().loader()


class AddsCallback(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == 10:
            self.trainer.callbacks.append(Recorder(False))
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 5:
            self.trainer.callbacks.append(Recorder(False))


class StopsItself(Model):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.trainer.should_stop = self.trainer.global_step == 10


class SetsHook(Model):
    """Hooks of the object itself, and one that comes only amid training."""

    def on_train_start(self) -> None:
        self.on_after_backward = lambda: self.calls.append("after backward")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 9:
            self.on_before_zero_grad = lambda optimiser: self.calls.append("before zero")
        return super().training_step(batch, batch_idx)


class Rows(DummyLogger):
    """Keeps what it is given to log."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Any] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((int(step or 0), dict(metrics)))


class LogsValidation(Overriding):
    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(2)

    def on_validation_batch_start(self, *args: Any) -> None:
        self.log("start", float(self.global_step), on_step=True, on_epoch=False)

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("both", loss, on_step=True, on_epoch=True, prog_bar=True)
        if batch_idx % 2:
            self.log("odd", loss, reduce_fx="max", batch_size=batch_idx)
        self.accuracy(self.net(batch["x"]), batch["label"])
        self.log("accuracy", self.accuracy)
        return loss


class TwoLoaders(LogsValidation):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> Tensor:
        self.calls.append((batch_idx, dataloader_idx))
        return super().validation_step(batch, batch_idx)

    def val_dataloader(self) -> Any:
        return [self.loader(), self.loader()]


class LoadersAtOnce(Overriding):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch["a"], batch_idx)

    def val_dataloader(self) -> Any:
        return CombinedLoader({"a": self.loader(), "b": self.loader()}, "max_size")


class ValidatesWithoutIndex(Overriding):
    def validation_step(self, batch: Any) -> Tensor:
        return self.loss(batch)


class ValidatesByIterator(Model):
    def validation_step(self, dataloader_iter: Any) -> None:
        batch, index, loader = next(dataloader_iter)
        self.calls.append((index, loader))
        self.log("val/loss", self.loss(batch), batch_size=4)


class AddsInValidation(LogsValidation):
    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.global_step == 7 and batch_idx == 2:
            self.trainer.callbacks.append(Recorder(False))
            self.on_validation_batch_end = lambda *args: self.calls.append(seen(args))
        return super().validation_step(batch, batch_idx)


class SetsHooksAtStart(LogsValidation):
    """A transfer and a step that come when a validation starts, and go when it ends."""

    def on_validation_start(self) -> None:
        if self.trainer.current_epoch == 1:
            self.on_after_batch_transfer = lambda batch, _: {**batch, "x": batch["x"] * 2}
            step = super().validation_step
            self.validation_step = lambda batch: step(batch, 1)

    def on_validation_end(self) -> None:
        vars(self).pop("on_after_batch_transfer", None)
        vars(self).pop("validation_step", None)


CASES = {
    "every hook": (Overriding, {}),
    "no hook": (Model, {}),
    "steps": (Model, {"max_epochs": -1, "max_steps": 17}),
    "clipped by norm": (Overriding, {"gradient_clip_val": 0.1}),
    "clipped by value": (Model, {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
    "clipped by the module": (Clipping, {}),
    "clipped by what the hook calls": (ClippingBelow, {}),
    "accumulated": (Overriding, {"accumulate_grad_batches": 3}),
    "bfloat16": (Model, {"precision": "bf16-mixed"}),
    "float16": (Overriding, {"plugins": [MixedPrecision("16-mixed", "cpu")]}),
    "a schedule by steps": (ByStep, {}),
    "a schedule by epochs": (ByEpoch, {}),
    "a plateau": (Plateau, {}),
    "a step without an index": (WithoutIndex, {}),
    "another dict": (OtherDict, {}),
    "logged": (Logging, {"log_every_n_steps": 2}),
    "no loss": (SometimesNone, {}),
    "an epoch's early end": (EndsEpochs, {}),
    "LBFGS": (Lbfgs, {}),
    "a step of the module's own": (Stepping, {}),
    "a transfer of the module's own": (Transferring, {}),
    "nested batches": (Nested, {}),
    "a stream": (Streaming, {}),
    "no batch": (Empty, {}),
    "a callback that comes later": (AddsCallback, {}),
    "stopped": (StopsItself, {}),
    "hooks of the object": (SetsHook, {}),
    "validated within": (Overriding, {"val_check_interval": 0.3}),
    "validated by batches": (Model, {"val_check_interval": 5, "check_val_every_n_epoch": None}),
    "a validation that logs": (LogsValidation, {"log_every_n_steps": 2}),
    "two loaders": (TwoLoaders, {}),
    "two loaders, few batches": (TwoLoaders, {"limit_val_batches": 2, "num_sanity_val_steps": 1}),
    "loaders at once": (LoadersAtOnce, {}),
    "a validation without an index": (ValidatesWithoutIndex, {}),
    "a validation by an iterator": (ValidatesByIterator, {}),
    "a callback that comes amid a validation": (AddsInValidation, {}),
    "hooks that come when a validation starts": (SetsHooksAtStart, {}),
    "validated in bfloat16": (LogsValidation, {"precision": "bf16-mixed"}),
    "few batches": (Model, {"limit_train_batches": 4, "limit_val_batches": 1}),
    "one batch": (Model, {"overfit_batches": 1}),
    "a fast run": (Logging, {"fast_dev_run": 3}),
}


def trained(
    kind: type[Model], options: dict[str, Any], direct: bool, ckpt_path: Path | None = None
) -> dict[str, Any]:
    recorder = Recorder(direct)
    rows = Rows()
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "logger": rows}
    quiet |= {"num_sanity_val_steps": 0, "enable_model_summary": False, "accelerator": "cpu"}
    module = kind()
    torch.manual_seed(1)  # of dropout
    trainer = pl.Trainer(**{"callbacks": [recorder], "max_epochs": 3, **quiet, **options})
    trainer.fit(module, ckpt_path=ckpt_path)
    assert recorder.took_over == direct
    validates = any(call[1] == "on_validation_batch_start" for call in recorder.calls)
    assert {*recorder.validated} == (IN_VALIDATIONS if direct and validates else set())
    others = [c.calls for c in trainer.callbacks if isinstance(c, Recorder)]
    return {
        "calls": others,
        "module's": module.calls,
        "weights": module.state_dict(),
        "optimiser": trainer.optimizers[0].state_dict(),
        "counts": counts(trainer),
        "steps": (trainer.global_step, trainer.fit_loop.epoch_loop._batches_that_stepped),
        "logged": {**trainer.logged_metrics},
        "callbacks'": {**trainer.callback_metrics},
        "bar's": {**trainer.progress_bar_metrics},
        "rows": rows.rows,
        "grad": vars(module)[CURRENT_HOOK],
    }


@pytest.mark.parametrize("case", CASES)
def test_hooks_arguments_counters_and_weights_are_those_of_lightnings_loop(case):
    kind, options = CASES[case]
    direct, lightnings = (trained(kind, options, direct) for direct in (True, False))
    assert len(direct["calls"][0]) > 10
    for name, value in direct.items():
        assert same(value, lightnings[name]), name


class SavesFirst(Model):
    file: Path

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if not self.file.exists():
            self.trainer.save_checkpoint(self.file)


def test_the_counters_after_a_restart_are_those_of_lightnings_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(SavesFirst, "file", tmp_path / "begun.ckpt", raising=False)
    trained(SavesFirst, {"max_epochs": 1}, direct=False)
    ours, lightnings = (trained(Model, {}, direct, SavesFirst.file) for direct in (True, False))
    assert ours["counts"] == lightnings["counts"]


class Terminated(Model):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self.trainer._signal_connector.received_sigterm = True


@pytest.mark.parametrize("direct", [True, False])
def test_a_validation_ends_by_sigterm_as_in_lightnings_loop(direct):
    recorder = Recorder(direct)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "logger": False}
    trainer = pl.Trainer(
        callbacks=[recorder], max_epochs=1, num_sanity_val_steps=0, accelerator="cpu", **quiet
    )
    with pytest.raises(SIGTERMException):
        trainer.fit(Terminated())
    assert trainer.fit_loop.epoch_loop.val_loop.batch_progress.current.completed == 3


class Manual(Model):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Fetching(Model):
    def training_step(self, dataloader_iter: Any) -> Any:
        batch, _, _ = next(dataloader_iter)
        return self.loss(batch)


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        (Manual, {}, "the model steps its optimisers itself"),
        (Fetching, {}, "`training_step` fetches its batches itself"),
        (Model, {"profiler": "simple"}, "the profiler is SimpleProfiler"),
        (Model, {"precision": "64-true"}, "the precision is DoublePrecision"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_another_kind_of_run_is_left_to_lightning(kind, options, reason):
    reasons = []
    note = LambdaCallback(on_train_start=lambda trainer, _: reasons.append(why_lightnings(trainer)))
    trainer = pl.Trainer(
        **{"callbacks": [note], "max_epochs": 1, "logger": False, "enable_checkpointing": False},
        **{"enable_progress_bar": False, "accelerator": "cpu", "limit_val_batches": 0, **options},
    )
    trainer.fit(kind().to(torch.float64) if options.get("precision") else kind())
    assert reasons == [reason]


def test_the_command_line_takes_the_direct_loop_and_has_a_switch(fit, monkeypatch):
    installed = []
    install = DirectLoop.install
    monkeypatch.setattr(DirectLoop, "install", lambda self: installed.append(1) or install(self))
    direct = result(fit())
    assert installed == [1]
    lightnings = result(fit("--fast_loop=false"))
    assert installed == [1]
    assert same(direct, lightnings)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("options", [(), ("--trainer.accumulate_grad_batches=2",)], ids=["", "2"])
def test_what_either_has_saved_goes_on_under_the_other(
    fit, run, sessions, monkeypatch, tmp_path, first, options
):
    options = (*options, "--trainer.max_steps=13", "--model.schedule=cosine", "--save_minutes=0")
    with monkeypatch.context() as patch:
        copy_at(patch, "on_train_batch_end", (4, 8), tmp_path / "stopped")
        expected = result(fit(*options, f"--fast_loop={str(first).lower()}"))
    other = f"--fast_loop={str(not first).lower()}"
    for n in (4, 8):
        session = tmp_path / "stopped" / str(n)
        assert run("fit", "--ckpt_path", session, other)[0] == 0
        assert same(result(session), expected)


@pytest.mark.slow
def test_two_processes_train_the_same_under_both(config, sessions):
    results = []
    for loop in ("true", "false"):
        options = ("--trainer.devices=2", "--data.n_samples=64", f"--fast_loop={loop}")
        run_process("fit", "--config", config, *options)
        results.append(result(sessions()[-1]))
    assert same(*results)


def test_a_line_tells_why_a_run_is_left_to_lightning(run, config):
    options = ("--trainer.max_steps=2", "--trainer.profiler=simple")
    code, out, err = run("fit", "--config", config, *options)
    assert code == 0, err
    line = "Training loop: Lightning's, which is slower: the profiler is SimpleProfiler\n"
    assert out.count(line) == 1
