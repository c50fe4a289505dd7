"""What a step of a near-empty network costs: the layer against Lightning and against itself.

python benchmarks/steps.py
python benchmarks/steps.py --devices 2
python benchmarks/steps.py --device cuda
"""

import argparse
import contextlib
import logging
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from common import alternate, report, run_processes, spread
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

N_STEPS = 1000
N_DEVICES = int(os.environ.get("WORLD_SIZE", 1))  # Lightning removes it after a run
DEVICE = os.environ.get("STEPS_DEVICE", "cpu")


class Clock(pl.Callback):
    """Seconds from the 20th iteration to the last one, and the iterations between."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step in (20, N_STEPS) and DEVICE == "cuda":
            torch.cuda.synchronize()
        if trainer.global_step == 20:
            Clock.started_s = time.perf_counter()
        if trainer.global_step == N_STEPS:
            Clock.step_s = (time.perf_counter() - Clock.started_s) / (N_STEPS - 20)


class Bare(pl.LightningModule):
    """The network of the tests' TinyModule."""

    def __init__(self, log: bool = False, metric: bool = False) -> None:
        super().__init__()
        from conftest import TinyModule

        module = TinyModule()
        module.create_model()
        module.create_loss()
        self.model, self.loss_fn = module.model, module.loss_fn
        self.logs = log
        self.accuracy = None
        if metric:
            self.accuracy = MulticlassAccuracy(2, average="micro", validate_args=False)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        output = self.model(batch["x"])
        loss = self.loss_fn(output, batch["label"])
        if self.accuracy is not None:
            self.accuracy.update(output.detach(), batch["label"])
        if self.logs:
            self.log("train/loss", loss, prog_bar=True)
            self.log("train/accuracy", self.accuracy, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def train_lightning(folder: str, usual: bool = False, metric: bool = False) -> None:
    from conftest import TinyDataset

    callbacks: list[pl.Callback] = [Clock()]
    if usual:
        callbacks.append(ModelCheckpoint(save_last=True))
    trainer = pl.Trainer(
        accelerator=DEVICE, devices=N_DEVICES, strategy="ddp" if N_DEVICES > 1 else "auto",
        max_steps=N_STEPS, max_epochs=-1, default_root_dir=folder,
        logger=TensorBoardLogger(folder) if usual else False,
        enable_checkpointing=usual, enable_progress_bar=usual,
        enable_model_summary=False, callbacks=callbacks,
    )  # fmt: skip
    data = TinyDataset(4 * N_DEVICES * N_STEPS)
    trainer.fit(Bare(log=usual, metric=metric), DataLoader(data, batch_size=4, shuffle=True))


def train_with_layer(folder: str, without: tuple[str, ...] = ()) -> None:
    from lightning_trainer import BaseModule
    from lightning_trainer.run import seeding
    from lightning_trainer.run.garbage import CollectGarbage
    from lightning_trainer.start.cli import run_trainer

    os.environ.pop("LIGHTNING_TRAINER_SESSION", None)
    flags = [
        "--model=conftest.TinyModule",
        "--data=conftest.TinyData",
        f"--trainer.devices={N_DEVICES}",
    ]
    flags += [f"--data.n_samples={4 * N_DEVICES * N_STEPS}", f"--trainer.max_steps={N_STEPS}"]
    flags += [f"--trainer.accelerator={DEVICE}", f"--trainer.callbacks+={__name__}.Clock"]
    with contextlib.ExitStack() as stack:
        if "metrics" in without:
            original = BaseModule.update_metrics

            def only_in_validation(self: Any, metrics: Any, *args: Any) -> None:
                if metrics is self.val_metrics:
                    original(self, metrics, *args)

            replace(stack, BaseModule, "update_metrics", only_in_validation)
        if "seeding" in without:
            from lightning_trainer.base import sampling

            for module in (sampling, seeding):
                replace(stack, module, "seed_generators", lambda *_: None)
                replace(stack, module, "derive_seed", lambda *_: 0)
        if "garbage" in without:
            replace(stack, CollectGarbage, "on_train_batch_end", lambda *_: None)
        run_trainer(["fit", *flags, f"--output_path={folder}"])


def replace(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


THINGS: dict[str, Callable[[str], None]] = {
    "bare Lightning, nothing on": train_lightning,
    "the same, with the metric": partial(train_lightning, metric=True),
    "Lightning as usual": partial(train_lightning, usual=True, metric=True),
    "the layer, all on": train_with_layer,
    "with Python's own collections": partial(train_with_layer, without=("garbage",)),
    "without metrics": partial(train_with_layer, without=("metrics",)),
    "without metrics and seeds": partial(train_with_layer, without=("metrics", "seeding")),
}


def run_rank(folder: str, n_rounds: int) -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    def step_s(train: Callable[[str], None]) -> float:
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            train(folder)
        return Clock.step_s

    values = alternate({name: partial(step_s, train) for name, train in THINGS.items()}, n_rounds)
    if os.environ["RANK"] == "0":
        n_processes = f"{N_DEVICES} processes" if N_DEVICES > 1 else "1 process"
        intro = (
            f"A network of 74 weights, 4 samples a batch, {N_STEPS} iterations, {n_rounds} runs of "
            "each. All on: session, terminal log, lines, TensorBoard, csv, checkpoints, metrics, a "
            "seed for each sample and step."
        )
        report(f"A step, {n_processes}", f"{intro}\n\n{spread(values, 'us', 1e6)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    os.environ["STEPS_DEVICE"] = args.device
    run_processes(args.devices, lambda folder: run_rank(folder, args.rounds))
