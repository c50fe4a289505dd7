"""The heat equation solved by a network (a PINN): u_t = u_xx / 10, heat 0 at both ends of a rod.

Shows a stream without an end as data, a loss by derivatives, and scores of 1e-4 and below.

python cli.py fit --config configs/pinn.yaml
"""

from collections.abc import Iterator

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MetricCollection

from lightning_trainer import BaseDataModule, BaseModule

DIFFUSIVITY = 0.1


def exact(points: Tensor) -> Tensor:
    """The solution at points (B, 2) of place and time, which the heat sin(pi x) begins."""
    x, t = points.T
    return torch.exp(-DIFFUSIVITY * torch.pi**2 * t) * torch.sin(torch.pi * x)


class RandomPoints:
    """A loader of ever new points in [0, 1] x [0, 1].

    Its draws are seeded by the position in the run: its empty state says that it keeps nothing.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            yield {"point": torch.rand(self.batch_size, 2)}

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


class PinnData(BaseDataModule):
    def create_data(self) -> None:
        axis = torch.linspace(0, 1, 33)
        self.val_dataset = [{"point": point} for point in torch.cartesian_prod(axis, axis)]
        self.test_dataset = self.predict_dataset = self.val_dataset

    def train_dataloader(self) -> RandomPoints:
        return RandomPoints(self.batch_size)


class Heat(nn.Module):
    """A network that can't but have the right heat at the start and at both ends."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
        self.network = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, points: Tensor) -> Tensor:
        x, t = points.T
        return torch.sin(torch.pi * x) + t * x * (1 - x) * self.network(points).squeeze(1)


class PinnModule(BaseModule):
    def __init__(self, width: int = 32, learning_rate: float = 5e-3, **kwargs) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()

    def create_model(self) -> None:
        self.model = Heat(self.hparams.width)

    def create_loss(self) -> None:
        self.loss_fn = nn.MSELoss()

    def create_optimiser(self) -> None:
        n_iterations = self.trainer.estimated_stepping_batches
        self.optimiser = torch.optim.Adam(self.model.parameters(), self.hparams.learning_rate)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, n_iterations)

    def create_metrics(self) -> None:
        self.train_metrics = MetricCollection({"error": MeanAbsoluteError()})
        self.val_metrics = self.train_metrics.clone()

    def forward_model(self, batch: dict[str, Tensor]) -> Tensor:
        if self.training:  # else nothing is derived
            batch["point"].requires_grad_()
        return self.model(batch["point"])

    def forward_loss(self, batch: dict[str, Tensor], output: Tensor) -> Tensor | None:
        """How far the equation is from being true; None in evaluation, without gradients."""
        if not self.training:
            return None
        u_x, u_t = derivatives(output, batch["point"])
        u_xx, _ = derivatives(u_x, batch["point"])
        return self.loss_fn(u_t, DIFFUSIVITY * u_xx)

    def update_metrics(self, metrics, batch: dict[str, Tensor], output: Tensor) -> None:
        metrics.update(output, exact(batch["point"].detach()))

    def visualise(self, batch: dict[str, Tensor], output: Tensor, mode: str) -> None:
        axis = torch.linspace(0, 1, 65, device=self.device)
        points = torch.cartesian_prod(axis, axis)
        heat, truth = self.model(points).cpu(), exact(points).cpu()
        figure = Figure(figsize=(8, 3), layout="constrained")
        maps = {"network": heat, "network - exact": heat - truth}
        for axes, (title, values) in zip(figure.subplots(1, 2), maps.items(), strict=True):
            drawn = axes.imshow(values.view(65, 65), origin="lower", extent=(0, 1, 0, 1))
            axes.set(title=title, xlabel="time", ylabel="place")
            figure.colorbar(drawn)
        self.tensorboard.add_figure(f"{mode}/heat", figure, self.global_step)


def derivatives(values: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Of values (B,) by place and by time at points (B, 2)."""
    return torch.autograd.grad(values.sum(), points, create_graph=True)[0].unbind(1)
