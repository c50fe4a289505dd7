"""The guide's network, loss, optimiser and metrics."""

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_trainer import BaseModule, draw_predictions


class Normalise(nn.Module):
    """uint8 images (B, 3, H, W) to floats of about zero mean and unit variance, on their device."""

    def __init__(self) -> None:
        super().__init__()
        # Mean and standard deviation of CIFAR-10's training images, by channel, in [0, 1].
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        # Subtracting from integers would make another copy, as floats, on the way.
        return images.to(self.mean.dtype, copy=True).sub_(self.mean).div_(self.std)


def convolution(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()
    )


class CifarModule(BaseModule):
    """The guide's example.

    Args:
        n_classes: Number of classes.
        learning_rate: Of Adam.
        weight_decay: L2 regularisation.
    """

    def __init__(
        self,
        n_classes: int = 10,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        n_classes = len(self.trainer.datamodule.classes)
        if n_classes != self.hparams.n_classes:
            raise ValueError(
                f"`model.n_classes` is {self.hparams.n_classes}, but the data has {n_classes} "
                f"classes: give --model.n_classes {n_classes}"
            )

    def create_model(self) -> None:
        widths = [3, 8, 16, 32, 64, 128, 256, 512]
        strides = [1, 1, 1, 1, 2, 2, 2]
        convolutions = map(convolution, widths[:-1], widths[1:], strides)
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 100), nn.ReLU()]
        classifier = nn.Linear(100, self.hparams.n_classes)
        self.model = nn.Sequential(Normalise(), *convolutions, *head, classifier)

    def create_loss(self) -> None:
        self.loss_fn = nn.CrossEntropyLoss()

    def create_optimiser(self) -> None:
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        hp = self.hparams
        self.optimiser = torch.optim.Adam(trainable, hp.learning_rate, weight_decay=hp.weight_decay)

    def create_metrics(self) -> None:
        # Micro-averaged: the share of images that are classified rightly.
        accuracy = MulticlassAccuracy(self.hparams.n_classes, average="micro", validate_args=False)
        self.train_metrics, self.val_metrics = accuracy, accuracy.clone()

    def forward_model(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch["image"])

    def forward_loss(self, batch: dict[str, Tensor], output: Tensor) -> Tensor:
        return self.loss_fn(output, batch["label"])

    def visualise(self, batch: dict[str, Tensor], output: Tensor, mode: str) -> None:
        classes = self.trainer.datamodule.classes
        figure = draw_predictions(batch["image"], batch["label"], output, classes)
        self.tensorboard.add_figure(f"{mode}/predictions", figure, self.global_step)
