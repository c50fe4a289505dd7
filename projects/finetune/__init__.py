"""Fine-tuning with few labels: the encoder of `projects.byol`, frozen at first, and a new head.

Shows `--init_from` another session, and Lightning's BackboneFinetuning in the config.

python cli.py fit --config configs/finetune.yaml --init_from experiments/session_..._byol
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_trainer import BaseDataModule, BaseModule, draw_predictions


class FewDigits(BaseDataModule):
    """Handwritten digits of scikit-learn, few of them for training.

    Args:
        n_train: Images for training.
    """

    def __init__(self, n_train: int = 50, **kwargs) -> None:
        super().__init__(**kwargs)
        self.n_train = n_train

    def create_data(self) -> None:
        digits = load_digits()
        images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)  # (1797, 1, 8, 8)
        pairs = zip(images, digits.target.tolist(), strict=True)
        samples = [{"image": image, "label": label} for image, label in pairs]
        self.train_dataset, self.val_dataset = samples[: self.n_train], samples[1400:]
        self.test_dataset = self.predict_dataset = self.val_dataset


class FinetuneModule(BaseModule):
    def __init__(self, learning_rate: float = 2e-3, **kwargs) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()

    def create_model(self) -> None:
        encoder = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten()),
        )
        # Weights are taken by their names: those of the encoder begin as they do in BYOL.
        self.model = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(64 * 16, 10)})

    @property
    def backbone(self) -> nn.Module:
        """What BackboneFinetuning freezes."""
        return self.model["encoder"]

    def create_loss(self) -> None:
        self.loss_fn = nn.CrossEntropyLoss()

    def create_optimiser(self) -> None:
        # BackboneFinetuning adds the encoder's weights when it thaws them.
        self.optimiser = torch.optim.Adam(
            self.model["head"].parameters(), self.hparams.learning_rate
        )

    def create_metrics(self) -> None:
        accuracy = MulticlassAccuracy(10, average="micro", validate_args=False)
        self.train_metrics, self.val_metrics = accuracy, accuracy.clone()

    def forward_model(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model["head"](self.model["encoder"](batch["image"]))

    def forward_loss(self, batch: dict[str, Tensor], output: Tensor) -> Tensor:
        return self.loss_fn(output, batch["label"])

    def visualise(self, batch: dict[str, Tensor], output: Tensor, mode: str) -> None:
        figure = draw_predictions(batch["image"], batch["label"], output)
        self.tensorboard.add_figure(f"{mode}/predictions", figure, self.global_step)
