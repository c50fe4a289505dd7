"""A variational autoencoder of digits, and whether it knows those that it never saw.

Shows a loss of named parts, and several validation sets: digits 0 to 7 as in training, and 8 and 9.

python cli.py fit --config configs/vae.yaml
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MetricCollection
from torchvision.utils import make_grid

from lightning_trainer import BaseDataModule, BaseModule


class VaeData(BaseDataModule):
    def create_data(self) -> None:
        digits = load_digits()
        labels = torch.tensor(digits.target)
        images = torch.tensor(digits.images / 16, dtype=torch.float32).flatten(1)  # (1797, 64)
        held_out = torch.arange(len(images)) % 5 == 0
        kinds = {"known": held_out & (labels < 8), "unknown": labels >= 8}
        self.train_dataset = [{"image": image} for image in images[~held_out & (labels < 8)]]
        self.val_dataset = {
            name: [{"image": image} for image in images[kind]] for name, kind in kinds.items()
        }
        self.test_dataset, self.predict_dataset = self.val_dataset, self.val_dataset["known"]


class Vae(nn.Module):
    """From images (B, 64) to the drawn image, mean and logarithm of the variance of the code."""

    def __init__(self, width: int, n_code: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 2 * n_code))
        self.decoder = nn.Sequential(nn.Linear(n_code, width), nn.ReLU(), nn.Linear(width, 64))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encoder(images).chunk(2, dim=1)
        noise = torch.randn_like(mean) if self.training else 0
        code = mean + noise * (log_var / 2).exp()
        return self.decoder(code).sigmoid(), mean, log_var


class VaeModule(BaseModule):
    def __init__(
        self,
        width: int = 128,
        n_code: int = 8,
        beta: float = 0.002,
        learning_rate: float = 3e-3,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()

    def create_model(self) -> None:
        self.model = Vae(self.hparams.width, self.hparams.n_code)

    def create_loss(self) -> None:
        self.loss_fn = nn.MSELoss()

    def create_optimiser(self) -> None:
        self.optimiser = torch.optim.Adam(self.model.parameters(), self.hparams.learning_rate)

    def create_metrics(self) -> None:
        self.train_metrics = MetricCollection({"mae": MeanAbsoluteError()})
        self.val_metrics = self.train_metrics.clone()

    def forward_model(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return self.model(batch["image"])

    def forward_loss(self, batch: dict[str, Tensor], output) -> dict[str, Tensor]:
        drawn, mean, log_var = output
        kl = (mean**2 + log_var.exp() - log_var - 1).sum(1).mean() / 2
        return {"reconstruction": self.loss_fn(drawn, batch["image"]), "kl": self.hparams.beta * kl}

    def update_metrics(self, metrics, batch: dict[str, Tensor], output) -> None:
        metrics.update(output[0], batch["image"])

    def visualise(self, batch: dict[str, Tensor], output, mode: str) -> None:
        """Rows: images, what is drawn of them, and what is drawn of random codes."""
        codes = torch.randn(16, self.hparams.n_code, device=self.device)
        made = self.model.decoder(codes).sigmoid()
        images = torch.cat([batch["image"][:16], output[0][:16], made]).view(-1, 1, 8, 8)
        self.tensorboard.add_image(f"{mode}/drawn", make_grid(images, nrow=16), self.global_step)
