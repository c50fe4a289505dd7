"""What a step costs, beside what people would write otherwise: one alternating run.

python benchmarks/peers.py
python benchmarks/peers.py --devices 2

Needs the extra `bench`. Each has the same near-empty network, data, metric, TensorBoard where the
system has one, and a line every 100 iterations.
"""

import argparse
import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from common import alternate, report, run_processes, spread
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torch.utils.tensorboard import SummaryWriter
from torchmetrics.classification import MulticlassAccuracy

from lightning_trainer import BaseDataModule, BaseModule

N_STEPS, WARM_UP, EVERY = 1500, 100, 100
N_DEVICES = int(os.environ.get("WORLD_SIZE", 1))  # Lightning removes it after a run
RANK = int(os.environ.get("RANK", 0))
BATCH = 16


class Rows(Dataset):
    """Samples in memory; reading one draws no random number."""

    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(n, 4, generator=generator)
        self.label = (self.x.sum(1) > 0).long()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "label": self.label[index]}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2)
    )


def metric() -> MulticlassAccuracy:
    return MulticlassAccuracy(2, average="micro", validate_args=False)


def loader() -> DataLoader[Any]:
    rows = Rows(BATCH * N_DEVICES * N_STEPS)
    sampler = DistributedSampler(rows) if N_DEVICES > 1 else None
    return DataLoader(rows, BATCH, shuffle=sampler is None, sampler=sampler)


class Clock:
    """The time of an iteration after the warm-up."""

    step_s = started_s = 0.0

    @classmethod
    def note(cls, step: int) -> None:
        if step == WARM_UP:
            cls.started_s = time.perf_counter()
        if step == N_STEPS:
            cls.step_s = (time.perf_counter() - cls.started_s) / (N_STEPS - WARM_UP)


class ClockCallback(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        Clock.note(trainer.global_step)


class Report:
    """The mean loss and the score, to TensorBoard and the terminal, every 100 iterations."""

    def __init__(self, folder: str, accuracy: MulticlassAccuracy) -> None:
        self.writer = SummaryWriter(folder) if RANK == 0 else None
        self.accuracy, self.losses = accuracy, torch.tensor(0.0)

    def step(self, step: int, loss: Tensor, output: Tensor, label: Tensor) -> None:
        self.losses += loss.detach()
        self.accuracy.update(output.detach(), label)
        if step % EVERY == 0:
            mean, score = self.losses.item() / EVERY, self.accuracy.compute().item()
            self.accuracy.reset()
            self.losses.zero_()
            if self.writer:
                self.writer.add_scalar("train/loss", mean, step)
                self.writer.add_scalar("train/accuracy", score, step)
                print(f"{step} / {N_STEPS} loss {mean:.4f} accuracy {score:.4f}", flush=True)
        Clock.note(step)


def plain_loop(folder: str) -> None:
    model, accuracy, loss_fn = network(), metric(), nn.CrossEntropyLoss()
    if N_DEVICES > 1:
        if not torch.distributed.is_initialized():  # Lightning leaves its own
            torch.distributed.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    lines = Report(folder, accuracy)
    for step, batch in enumerate(loader(), 1):
        output = model(batch["x"])
        loss = loss_fn(output, batch["label"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        lines.step(step, loss, output, batch["label"])


def fabric(folder: str) -> None:
    from lightning.fabric import Fabric

    system = Fabric(accelerator="cpu", devices=N_DEVICES)
    system.launch()
    model, loss_fn = network(), nn.CrossEntropyLoss()
    model, optimiser = system.setup(model, torch.optim.Adam(model.parameters(), 1e-2))
    lines = Report(folder, metric())
    for step, batch in enumerate(system.setup_dataloaders(loader()), 1):
        output = model(batch["x"])
        loss = loss_fn(output, batch["label"])
        optimiser.zero_grad()
        system.backward(loss)
        optimiser.step()
        lines.step(step, loss, output, batch["label"])


def accelerate(folder: str) -> None:
    from accelerate import Accelerator

    system = Accelerator(cpu=True)
    model, loss_fn = network(), nn.CrossEntropyLoss()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    model, optimiser, batches = system.prepare(model, optimiser, loader())
    lines = Report(folder, metric())
    for step, batch in enumerate(batches, 1):
        output = model(batch["x"])
        loss = loss_fn(output, batch["label"])
        optimiser.zero_grad()
        system.backward(loss)
        optimiser.step()
        lines.step(step, loss, output, batch["label"])


def ignite(folder: str) -> None:
    from ignite.engine import Engine, Events

    model, loss_fn = network(), nn.CrossEntropyLoss()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    lines = Report(folder, metric())

    def update(engine: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        model.train()
        output = model(batch["x"])
        loss = loss_fn(output, batch["label"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss, output, batch["label"]

    engine = Engine(update)

    @engine.on(Events.ITERATION_COMPLETED)
    def _(engine: Any) -> None:
        lines.step(engine.state.iteration, *engine.state.output)

    engine.run(loader(), max_epochs=1)


class Bare(pl.LightningModule):
    def __init__(self, logs: bool = False) -> None:
        super().__init__()
        self.model, self.accuracy, self.loss_fn = network(), metric(), nn.CrossEntropyLoss()
        self.logs = logs

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        output = self.model(batch["x"])
        loss = self.loss_fn(output, batch["label"])
        self.accuracy.update(output.detach(), batch["label"])
        if self.logs:
            self.log("train/loss", loss, prog_bar=True)
            self.log("train/accuracy", self.accuracy, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def lightning(folder: str, usual: bool = False) -> None:
    callbacks: list[pl.Callback] = [ClockCallback()]
    if usual:
        callbacks.append(ModelCheckpoint(save_last=True))
    trainer = pl.Trainer(
        accelerator="cpu", devices=N_DEVICES, strategy="ddp" if N_DEVICES > 1 else "auto",
        max_steps=N_STEPS, max_epochs=-1, default_root_dir=folder, log_every_n_steps=EVERY,
        logger=TensorBoardLogger(folder) if usual else False, use_distributed_sampler=False,
        enable_checkpointing=usual, enable_progress_bar=usual,
        enable_model_summary=False, callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(Bare(logs=usual), loader())


class RowsData(BaseDataModule):
    def __init__(self) -> None:
        super().__init__(BATCH, n_workers=0)

    def create_data(self) -> None:
        self.train_dataset = Rows(BATCH * N_DEVICES * N_STEPS)
        self.val_dataset = Rows(64)


class RowsModule(BaseModule):
    def create_model(self) -> None:
        self.model = network()

    def create_loss(self) -> None:
        self.loss_fn = nn.CrossEntropyLoss()

    def create_optimiser(self) -> None:
        self.optimiser = torch.optim.Adam(self.model.parameters(), 1e-2)

    def create_metrics(self) -> None:
        self.train_metrics, self.val_metrics = metric(), metric()

    def forward_model(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch["x"])

    def forward_loss(self, batch: dict[str, Tensor], output: Tensor) -> Tensor:
        return self.loss_fn(output, batch["label"])


def layer(folder: str, *more: str) -> None:
    from lightning_trainer.start.cli import run_trainer

    os.environ.pop("LIGHTNING_TRAINER_SESSION", None)
    flags = ["--model=peers.RowsModule", "--data=peers.RowsData", "--trainer.accelerator=cpu"]
    flags += [f"--trainer.devices={N_DEVICES}", f"--trainer.max_steps={N_STEPS}", *more]
    flags += [f"--trainer.log_every_n_steps={EVERY}", f"--trainer.val_check_interval={N_STEPS}"]
    run_trainer(
        ["fit", *flags, "--trainer.callbacks+=peers.ClockCallback", f"--output_path={folder}"]
    )


def systems() -> dict[str, Callable[[str], None]]:
    common: dict[str, Callable[[str], None]] = {
        "plain loop": plain_loop,
        "the layer, all on": layer,
        "the same by Lightning's loop": lambda folder: layer(folder, "--fast_loop=false"),
        "bare Lightning, no TensorBoard": lightning,
        "Lightning as people use it": lambda folder: lightning(folder, usual=True),
    }
    if N_DEVICES > 1:
        return common
    return common | {"Lightning Fabric": fabric, "ignite": ignite, "accelerate": accelerate}


def measure(folder: str, n_rounds: int) -> None:
    import peers  # the classes that the layer finds by name, and their clock

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)

    def step_s(train: Callable[[str], None]) -> float:
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            train(tempfile.mkdtemp(dir=folder))
        return peers.Clock.step_s

    things = {name: (lambda t=train: step_s(t)) for name, train in peers.systems().items()}
    values = alternate(things, n_rounds)
    if RANK == 0:
        intro = (
            f"A network of 74 weights with batch norm and dropout, {BATCH} samples a batch and "
            f"process, {N_STEPS} iterations, {n_rounds} runs of each in turn, one thread each; "
            f"without the first {WARM_UP} iterations. All have the metric, all but one "
            f"TensorBoard, and all but Lightning a line every {EVERY}. The layer has besides: "
            "session, log, csv, checkpoints, a seed for each sample and step, a look for numbers "
            "that are not finite."
        )
        title = f"A step beside other systems, {N_DEVICES} process{'es' * (N_DEVICES > 1)}"
        report(title, f"{intro}\n\n{spread(values, 'us', 1e6)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    run_processes(args.devices, lambda folder: measure(folder, args.rounds))
