"""What a step costs, the layer with all on against a bare Lightning trainer with nothing on.

python benchmarks/steps.py
python benchmarks/steps.py --devices 2
"""

import argparse
import contextlib
import logging
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import lightning
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
N_STEPS, N_ROUNDS = 1000, 7
N_DEVICES = int(os.environ.get("WORLD_SIZE", 1))  # Lightning removes it after a run


class Clock(pl.Callback):
    """Seconds from the 20th iteration to the last one, and the iterations between."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step == 20:
            Clock.started_s = time.perf_counter()
        if trainer.global_step == N_STEPS:
            Clock.step_s = (time.perf_counter() - Clock.started_s) / (N_STEPS - 20)


def train_bare(folder: str) -> None:
    from conftest import TinyDataset, TinyModule

    class Bare(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            module = TinyModule()
            module.create_model()
            module.create_loss()
            self.model, self.loss_fn = module.model, module.loss_fn

        def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
            return self.loss_fn(self.model(batch["x"]), batch["label"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-2)

    trainer = pl.Trainer(
        accelerator="cpu", devices=N_DEVICES, strategy="ddp" if N_DEVICES > 1 else "auto",
        max_steps=N_STEPS, max_epochs=-1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Clock()],
    )  # fmt: skip
    trainer.fit(
        Bare(), DataLoader(TinyDataset(4 * N_DEVICES * N_STEPS), batch_size=4, shuffle=True)
    )


def train_with_layer(folder: str) -> None:
    from lightning_trainer.cli import main

    os.environ.pop("LIGHTNING_TRAINER_SESSION", None)
    flags = [
        "--model=conftest.TinyModule",
        "--data=conftest.TinyData",
        f"--trainer.devices={N_DEVICES}",
    ]
    flags += [f"--data.n_samples={4 * N_DEVICES * N_STEPS}", f"--trainer.max_steps={N_STEPS}"]
    flags += ["--trainer.accelerator=cpu", f"--trainer.callbacks+={__name__}.Clock"]
    main(["fit", *flags, f"--output_path={folder}"])


def run_rank(folder: str) -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    times: dict[str, list[float]] = {}
    things = {"bare Lightning, nothing on": train_bare, "the layer, all on": train_with_layer}
    for _ in range(N_ROUNDS):
        for name, train in things.items():
            with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
                train(folder)
            times.setdefault(name, []).append(Clock.step_s)
    if os.environ["RANK"] != "0":
        return
    first = statistics.median(next(iter(times.values())))
    print("| | median us/step | fastest | slowest | ratio |\n|---|---|---|---|---|")
    for name, values in times.items():
        median = statistics.median(values)
        numbers = " | ".join(f"{s * 1e6:.0f}" for s in (median, min(values), max(values)))
        print(f"| {name} | {numbers} | {median / first:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1)
    n = parser.parse_args().devices
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, lightning "
        f"{lightning.__version__}; {n} process(es), {N_STEPS} steps, {N_ROUNDS} of each in turn"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(n)}
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, folder],
                env={**os.environ, **common, "RANK": str(i), "LOCAL_RANK": str(i)},
            )
            for i in range(n)
        ]
        if any([rank.wait() for rank in ranks]):
            raise SystemExit("a process failed")


if __name__ == "__main__":
    run_rank(sys.argv[1]) if "RANK" in os.environ else main()
