"""Regression on a table: the progress of diabetes, from scikit-learn, one of five folds held out.

Shows a score of which less is better, what the data knows in the model, and folds by one setting.

python cli.py fit --config configs/tabular.yaml
"""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from sklearn.model_selection import KFold
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MetricCollection

from lightning_trainer import BaseDataModule, BaseModule


class TabularData(BaseDataModule):
    """Ten numbers of each of 442 patients, and a measure of their diabetes a year later.

    Args:
        fold: Which fifth of the patients is held out, 0 to 4.
    """

    def __init__(self, fold: int = 0, **kwargs) -> None:
        super().__init__(**kwargs)
        if not 0 <= fold < 5:
            raise ValueError(f"`data.fold` is {fold}: it must be 0 to 4")
        self.fold = fold

    def create_data(self) -> None:
        table = load_diabetes()
        x = torch.tensor(table.data, dtype=torch.float32)  # (442, 10)
        y = torch.tensor(table.target, dtype=torch.float32)
        folds = KFold(n_splits=5, shuffle=True, random_state=0).split(x)
        train, held_out = map(torch.tensor, [*folds][self.fold])
        self.x_mean, self.x_std = x[train].mean(0), x[train].std(0)
        self.y_mean, self.y_std = y[train].mean(), y[train].std()
        self.train_dataset = [{"x": x[i], "y": y[i]} for i in train]
        self.val_dataset = [{"x": x[i], "y": y[i]} for i in held_out]
        self.test_dataset = self.predict_dataset = self.val_dataset


class Standardised(nn.Module):
    """A network whose input and output are standardised; the figures are saved with its weights."""

    def __init__(self, network: nn.Module, data: TabularData) -> None:
        super().__init__()
        self.network = network
        for name in ("x_mean", "x_std", "y_mean", "y_std"):
            self.register_buffer(name, getattr(data, name))

    def forward(self, x: Tensor) -> Tensor:
        output = self.network((x - self.x_mean) / self.x_std)
        return output.squeeze(1) * self.y_std + self.y_mean


class TabularModule(BaseModule):
    def __init__(
        self,
        width: int = 32,
        dropout: float = 0.3,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.1,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()

    def create_model(self) -> None:
        data, w = self.trainer.datamodule, self.hparams.width
        self.model = Standardised(
            nn.Sequential(
                *(nn.Linear(len(data.x_mean), w), nn.ReLU(), nn.Dropout(self.hparams.dropout)),
                *(nn.Linear(w, w), nn.ReLU(), nn.Linear(w, 1)),
            ),
            data,
        )

    def create_loss(self) -> None:
        self.loss_fn = nn.L1Loss()

    def create_optimiser(self) -> None:
        hp = self.hparams
        weights = self.model.parameters()
        self.optimiser = torch.optim.AdamW(weights, hp.learning_rate, weight_decay=hp.weight_decay)

    def create_metrics(self) -> None:
        self.train_metrics = MetricCollection({"mae": MeanAbsoluteError()})
        self.val_metrics = self.train_metrics.clone()

    def forward_model(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch["x"])

    def forward_loss(self, batch: dict[str, Tensor], output: Tensor) -> Tensor:
        return self.loss_fn(output, batch["y"]) / self.model.y_std

    def update_metrics(self, metrics, batch: dict[str, Tensor], output: Tensor) -> None:
        metrics.update(output, batch["y"])

    def visualise(self, batch: dict[str, Tensor], output: Tensor, mode: str) -> None:
        figure = Figure(figsize=(4, 4), layout="constrained")
        axes = figure.subplots()
        axes.axline((150, 150), slope=1, color="grey", linewidth=1)
        axes.scatter(batch["y"].cpu(), output.cpu(), s=12)
        axes.set(xlabel="true progress", ylabel="predicted", xlim=(0, 360), ylim=(0, 360))
        self.tensorboard.add_figure(f"{mode}/predicted", figure, self.global_step)
