"""Learning without labels (BYOL): a student learns what its teacher makes of another view.

Shows a teacher that follows after each iteration, no validation loss, and a score by neighbours
(Grill et al., "Bootstrap your own latent", NeurIPS 2020).

python cli.py fit --config configs/byol.yaml
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat
from torchvision.utils import make_grid

from lightning_trainer import BaseDataModule, BaseModule, random_crop_and_flip


def random_view(images: Tensor) -> Tensor:
    """Moves each image by up to one pixel and adds noise."""
    seeds = torch.randint(2**62, (len(images),), device=images.device)
    moved = random_crop_and_flip(images, seeds, padding=1, flips=False)
    return moved + 0.1 * torch.randn_like(moved)


class UnlabelledDigits(BaseDataModule):
    def create_data(self) -> None:
        digits = load_digits()
        images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)  # (1797, 1, 8, 8)
        pairs = zip(images, digits.target.tolist(), strict=True)
        samples = [{"image": image, "label": label} for image, label in pairs]
        self.train_dataset, self.val_dataset = samples[:1400], samples[1400:]
        self.test_dataset = self.predict_dataset = self.val_dataset

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int):
        if self.trainer.training:
            batch["views"] = torch.cat([random_view(batch["image"]) for _ in range(2)])
        return batch


class NeighbourAccuracy(Metric):
    """Share of the samples whose nearest neighbour by the angle of features has their label."""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        for name in ("features", "labels"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, features: Tensor, labels: Tensor) -> None:
        self.features.append(normalize(features))
        self.labels.append(labels)

    def compute(self) -> Tensor:
        features, labels = dim_zero_cat(self.features), dim_zero_cat(self.labels)
        nearest = (features @ features.T).fill_diagonal_(-1).argmax(1)
        return (labels[nearest] == labels).float().mean()


def mlp(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_in, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, n_out)
    )


class ByolModule(BaseModule):
    def __init__(self, learning_rate: float = 2e-3, momentum: float = 0.98, **kwargs) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()

    def create_model(self) -> None:
        encoder = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten()),
        )
        self.model = nn.ModuleDict({"encoder": encoder, "projector": mlp(64 * 16, 64)})
        self.model["teacher"] = copy.deepcopy(nn.Sequential(*self.model.values()))
        self.model["teacher"].requires_grad_(False)
        self.model["predictor"] = mlp(64, 64)

    def create_loss(self) -> None:
        self.loss_fn = lambda found, wanted: 1 - cosine_similarity(found, wanted).mean()

    def create_optimiser(self) -> None:
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimiser = torch.optim.Adam(weights, self.hparams.learning_rate)

    def create_metrics(self) -> None:
        # Features without spread have collapsed: the student has learned to say always the same.
        self.train_metrics = MetricCollection({"spread": MeanMetric()})
        self.val_metrics = MetricCollection({"knn": NeighbourAccuracy()})

    def forward_model(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model["encoder"](batch["views" if self.training else "image"])

    def forward_loss(self, batch: dict[str, Tensor], output: Tensor) -> Tensor | None:
        if not self.training:
            return None  # there is no second view
        found = self.model["predictor"](self.model["projector"](output))
        with torch.no_grad():
            first, second = self.model["teacher"](batch["views"]).chunk(2)
        return self.loss_fn(found, torch.cat([second, first]))

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        student = nn.ModuleList([self.model["encoder"], self.model["projector"]]).parameters()
        for old, new in zip(self.model["teacher"].parameters(), student, strict=True):
            old.lerp_(new.detach(), 1 - self.hparams.momentum)

    def update_metrics(self, metrics, batch: dict[str, Tensor], output: Tensor) -> None:
        metrics.update(*([output.std(0).mean()] if self.training else [output, batch["label"]]))

    def visualise(self, batch: dict[str, Tensor], output: Tensor, mode: str) -> None:
        """A row: an image and those that are nearest to it."""
        images, features = batch["views" if mode == "train" else "image"], normalize(output)
        nearest = (features @ features.T)[:8].topk(8).indices.flatten()
        self.tensorboard.add_image(f"{mode}/nearest", make_grid(images[nearest]), self.global_step)
