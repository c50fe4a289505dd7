"""Forecasts of made-up series of different lengths: each value from those before it.

Shows a `collate_fn` that pads, and a loss, a metric and a count that leave the padding out.

python cli.py fit --config configs/timeseries.yaml
"""

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import MeanAbsoluteError, MetricCollection

from lightning_trainer import BaseDataModule, BaseModule


class Series(torch.utils.data.Dataset):
    """Sums of two waves and a little noise, each of 10 to 40 values."""

    def __init__(self, n_series: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(10, 41, (n_series,), generator=generator)
        self.series = [self._make(int(length), generator) for length in lengths]

    def _make(self, length: int, generator: torch.Generator) -> Tensor:
        period = 5 + 10 * torch.rand(2, 1, generator=generator)
        phase = 2 * torch.pi * torch.rand(2, 1, generator=generator)
        waves = torch.sin(2 * torch.pi * torch.arange(length) / period + phase)
        return waves.sum(0) + 0.05 * torch.randn(length, generator=generator)

    def __len__(self) -> int:
        return len(self.series)

    def __getitem__(self, index: int) -> Tensor:
        return self.series[index]

    @staticmethod
    def collate_fn(series: list[Tensor]) -> dict[str, Tensor]:
        """The series (B, T), zeros behind their ends, and whether a value is theirs (B, T)."""
        lengths = torch.tensor([len(s) for s in series])
        values = pad_sequence(series, batch_first=True)
        return {"values": values, "valid": torch.arange(values.shape[1]) < lengths[:, None]}


class TimeSeriesData(BaseDataModule):
    def __init__(self, n_train: int = 2000, n_val: int = 200, **kwargs) -> None:
        super().__init__(**kwargs)
        self.n_train, self.n_val = n_train, n_val

    def create_data(self) -> None:
        self.train_dataset = Series(self.n_train, seed=0)
        self.val_dataset = Series(self.n_val, seed=1)
        self.test_dataset = self.predict_dataset = self.val_dataset


class Forecaster(nn.Module):
    """From values (B, T) to a forecast of the next value at each step (B, T)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.memory, self.head = nn.GRU(1, width, batch_first=True), nn.Linear(width, 1)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(self.memory(values[..., None])[0]).squeeze(-1)


class TimeSeriesModule(BaseModule):
    examples_unit = "steps"

    def __init__(self, width: int = 32, learning_rate: float = 5e-3, **kwargs) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()

    def create_model(self) -> None:
        self.model = Forecaster(self.hparams.width)

    def create_loss(self) -> None:
        self.loss_fn = nn.MSELoss()

    def create_optimiser(self) -> None:
        n_iterations = self.trainer.estimated_stepping_batches
        self.optimiser = torch.optim.Adam(self.model.parameters(), self.hparams.learning_rate)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, n_iterations)

    def create_metrics(self) -> None:
        self.train_metrics = MetricCollection({"mae": MeanAbsoluteError()})
        self.val_metrics = self.train_metrics.clone()

    def forward_model(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch["values"][:, :-1])

    def forward_loss(self, batch: dict[str, Tensor], output: Tensor) -> Tensor:
        return self.loss_fn(*self._valid(batch, output))

    def update_metrics(self, metrics, batch: dict[str, Tensor], output: Tensor) -> None:
        metrics.update(*self._valid(batch, output))

    def count_examples(self, batch: dict[str, Tensor]) -> int:
        """Steps that are forecast: by these the losses of batches are weighted."""
        return int(batch["valid"][:, 1:].sum())

    def _valid(self, batch: dict[str, Tensor], output: Tensor) -> tuple[Tensor, Tensor]:
        """Forecasts and true values without the padding, each (N,)."""
        valid = batch["valid"][:, 1:]
        return output[valid], batch["values"][:, 1:][valid]

    def visualise(self, batch: dict[str, Tensor], output: Tensor, mode: str) -> None:
        figure = Figure(figsize=(7, 4), layout="constrained")
        for i, axes in enumerate(figure.subplots(2, 2, sharex=True).flat):
            valid = batch["valid"][i, 1:].cpu()
            axes.plot(batch["values"][i, 1:].cpu()[valid], color="grey", label="true")
            axes.plot(output[i].cpu()[valid], color="#D55E00", linestyle="--", label="forecast")
        axes.legend()
        self.tensorboard.add_figure(f"{mode}/forecasts", figure, self.global_step)
