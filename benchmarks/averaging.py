"""What an average of the weights adds to a step: AverageWeights, and Lightning's callback.

python benchmarks/averaging.py
"""

import logging
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial

import lightning.pytorch as pl
import torch
from common import alternate, report, spread
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_trainer import AverageWeights

N_STEPS, N_LAYERS, N_WIDE = 300, 20, 64
ON_GPU = torch.cuda.is_available()
now_s = time.perf_counter if ON_GPU else time.process_time  # other programs count less


class Clock(Callback):
    """Notes when each step begins, from the 20th on."""

    def __init__(self) -> None:
        self.begun_s: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step >= 20:
            self.begun_s.append(now_s())

    def step_s(self) -> float:
        pairs = zip(self.begun_s, self.begun_s[1:], strict=False)
        return statistics.median(after - before for before, after in pairs)


class Deep(pl.LightningModule):
    """80 parameters and 60 buffers, of which a step is mostly the cost of calls."""

    def __init__(self) -> None:
        super().__init__()
        layers = [(nn.Linear(N_WIDE, N_WIDE), nn.BatchNorm1d(N_WIDE)) for _ in range(N_LAYERS)]
        self.model = nn.Sequential(*(layer for pair in layers for layer in pair))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.model(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


def train(make: Callable[[], list[Callback]]) -> float:
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="gpu" if ON_GPU else "cpu", devices=1, max_steps=N_STEPS, max_epochs=-1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[clock, *make()],
    )  # fmt: skip
    data = TensorDataset(torch.randn(8 * N_STEPS, N_WIDE))
    trainer.fit(Deep(), DataLoader(data, batch_size=8))
    return clock.step_s()


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    n_rounds = 7
    things = {
        "no average": partial(train, lambda: []),
        "AverageWeights": partial(train, lambda: [AverageWeights()]),
        "EMAWeightAveraging": partial(train, lambda: [EMAWeightAveraging()]),
    }
    values = alternate(things, n_rounds)
    intro = (
        f"Bare Lightning; {N_LAYERS} linear layers of {N_WIDE} with batch norm, i.e. 140 tensors; "
        f"8 samples a batch; medians of {N_STEPS - 20} steps, {n_rounds} runs of each"
        f"{'' if ON_GPU else '; time of the processor, one thread'}."
    )
    report("An average of the weights", f"{intro}\n\n{spread(values, 'us', 1e6)}")
