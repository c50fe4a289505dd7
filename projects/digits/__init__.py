"""Handwritten digits, 8x8 grey, embedded in scikit-learn: the smallest project.

python cli.py fit --config configs/digits.yaml
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_trainer import BaseDataModule, BaseModule, draw_predictions


class DigitsData(BaseDataModule):
    def create_data(self) -> None:
        digits = load_digits()
        images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)  # (1797, 1, 8, 8)
        pairs = zip(images, digits.target.tolist(), strict=True)
        samples = [{"image": image, "label": label} for image, label in pairs]
        split = train_test_split(samples, test_size=360, random_state=0)
        self.train_dataset, self.val_dataset = split
        self.test_dataset = self.predict_dataset = self.val_dataset


class DigitsModule(BaseModule):
    def __init__(self, width: int = 32, learning_rate: float = 3e-3, **kwargs) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()

    def create_model(self) -> None:
        w = self.hparams.width
        self.model = nn.Sequential(
            nn.Conv2d(1, w, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(w, 2 * w, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * w, 10),
        )  # fmt: skip

    def create_loss(self) -> None:
        self.loss_fn = nn.CrossEntropyLoss()

    def create_optimiser(self) -> None:
        self.optimiser = torch.optim.Adam(self.model.parameters(), self.hparams.learning_rate)

    def create_metrics(self) -> None:
        accuracy = MulticlassAccuracy(10, average="micro", validate_args=False)
        self.train_metrics, self.val_metrics = accuracy, accuracy.clone()

    def forward_model(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch["image"])

    def forward_loss(self, batch: dict[str, Tensor], output: Tensor) -> Tensor:
        return self.loss_fn(output, batch["label"])

    def visualise(self, batch: dict[str, Tensor], output: Tensor, mode: str) -> None:
        figure = draw_predictions(batch["image"], batch["label"], output)
        self.tensorboard.add_figure(f"{mode}/predictions", figure, self.global_step)
