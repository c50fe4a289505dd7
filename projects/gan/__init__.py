"""A generative adversarial network of digits: one network makes images, another finds them out.

Shows two optimisers, a grid of images, and a distance of two sets of images as the score.

python cli.py fit --config configs/gan.yaml
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat
from torchvision.utils import make_grid

from lightning_trainer import BaseDataModule, BaseModule

N_LATENT = 32


class GanData(BaseDataModule):
    """Images (64,) from -1 to 1; those of a validation with the noise to make others from."""

    def create_data(self) -> None:
        images = torch.tensor(load_digits().data / 8 - 1, dtype=torch.float32)
        noise = torch.randn(397, N_LATENT, generator=torch.Generator().manual_seed(0))
        self.train_dataset = [{"image": image} for image in images[:1400]]
        pairs = zip(images[1400:], noise, strict=True)
        self.val_dataset = [{"image": image, "noise": z} for image, z in pairs]
        self.test_dataset = self.predict_dataset = self.val_dataset


class FrechetDistance(Metric):
    """Of two normal distributions that have the mean and covariance of two sets of images.

    In pixels, where Heusel et al. ("GANs trained by a two time-scale update rule", NeurIPS 2017)
    use the features of a network: |m - n|^2 + tr(C + D - 2 sqrt(C D)).
    """

    higher_is_better = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("made", [], dist_reduce_fx="cat")

    def update(self, real: Tensor, made: Tensor) -> None:
        self.real.append(real)
        self.made.append(made)

    def compute(self) -> Tensor:
        real, made = dim_zero_cat(self.real).double(), dim_zero_cat(self.made).double()
        c, d = real.T.cov(), made.T.cov()
        root = torch.linalg.eigvals(c @ d).sqrt().real.sum()
        return ((real.mean(0) - made.mean(0)) ** 2).sum() + c.trace() + d.trace() - 2 * root


class GanModule(BaseModule):
    def __init__(self, width: int = 128, learning_rate: float = 5e-4, **kwargs) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()

    def create_model(self) -> None:
        w = self.hparams.width
        generator = nn.Sequential(
            *(nn.Linear(N_LATENT, w), nn.BatchNorm1d(w), nn.ReLU()),
            *(nn.Linear(w, w), nn.BatchNorm1d(w), nn.ReLU(), nn.Linear(w, 64), nn.Tanh()),
        )
        critic = nn.Sequential(
            *(nn.Linear(64, w), nn.LeakyReLU(0.2), nn.Dropout(0.3)),
            *(nn.Linear(w, w), nn.LeakyReLU(0.2), nn.Linear(w, 1)),
        )
        self.model = nn.ModuleDict({"generator": generator, "critic": critic})

    def create_loss(self) -> None:
        loss = nn.functional.binary_cross_entropy_with_logits
        self.loss_fn = lambda logits, real: loss(logits, torch.full_like(logits, real))

    def create_optimiser(self) -> None:
        lr, betas = self.hparams.learning_rate, (0.5, 0.999)
        self.optimiser = {
            name: torch.optim.Adam(network.parameters(), lr, betas)
            for name, network in self.model.items()
        }

    def create_metrics(self) -> None:
        self.train_metrics = MetricCollection({"made_std": MeanMetric()})
        self.val_metrics = MetricCollection({"frechet": FrechetDistance()})

    def forward_model(self, batch: dict[str, Tensor]) -> Tensor:
        noise = batch["noise"] if "noise" in batch else torch.randn(len(batch["image"]), N_LATENT)
        return self.model["generator"](noise.to(self.device))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        critic, made = self.model["critic"], self.forward_model(batch)
        found_out = self.loss_fn(critic(batch["image"]), 1.0) + self.loss_fn(
            critic(made.detach()), 0.0
        )
        self.optimise("critic", found_out)
        taken_for_real = self.loss_fn(critic(made), 1.0)
        self.optimise("generator", taken_for_real)
        self.train_metrics.update(made.detach().std(0).mean())
        return {"generator": taken_for_real, "critic": found_out, "output": made.detach()}

    def forward_loss(self, batch: dict[str, Tensor], output: Tensor) -> None:
        """None in evaluation: the two losses say little; training has its own step."""

    def update_metrics(self, metrics, batch: dict[str, Tensor], output: Tensor) -> None:
        metrics.update(batch["image"], output)

    def visualise(self, batch: dict[str, Tensor], output: Tensor, mode: str) -> None:
        images = torch.cat([output[:32], batch["image"][:16]]).view(-1, 1, 8, 8) / 2 + 0.5
        self.tensorboard.add_image(f"{mode}/made", make_grid(images, nrow=16), self.global_step)
