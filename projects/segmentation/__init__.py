"""Segmentation: a small U-Net finds squares and triangles in noise.

Shows a class for each pixel, a random flip that mirrors image and mask alike, and overlays.

python cli.py fit --config configs/segmentation.yaml
"""

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassJaccardIndex
from torchvision.utils import make_grid

from lightning_trainer import BaseDataModule, BaseModule

SIZE = 32  # of an image, in pixels
# Of background, square and triangle, in [0, 1].
COLOURS = torch.tensor([[0, 0, 0], [0.9, 0.6, 0], [0, 0.6, 0.9]])


def draw_scene(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three shapes in noise: an image (3, H, W) in [0, 1] and its classes, integers (H, W)."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    image = torch.rand(3, 1, 1, generator=generator).repeat(1, SIZE, SIZE)
    mask = torch.zeros(SIZE, SIZE, dtype=torch.long)
    for label in torch.randint(1, 3, (3,), generator=generator).tolist():
        middle = torch.randint(SIZE, (2,), generator=generator)
        radius = int(torch.randint(SIZE // 6, SIZE // 3, (), generator=generator))
        down, right = y - middle[0], (x - middle[1]).abs()
        square = (down.abs() < radius) & (right < radius)
        triangle = (down.abs() < radius) & (right < (down + radius) / 2)
        inside = square if label == 1 else triangle
        image[:, inside] = torch.rand(3, 1, generator=generator)
        mask[inside] = label
    return (image + 0.15 * torch.randn(image.shape, generator=generator)).clamp(0, 1), mask


class Scenes(torch.utils.data.Dataset):
    def __init__(self, n_images: int, seed: int, flip: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.scenes, self.flip = [draw_scene(generator) for _ in range(n_images)], flip

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, mask = self.scenes[index]
        if self.flip and torch.rand(()) < 0.5:  # torch is seeded for each sample
            image, mask = image.flip(-1), mask.flip(-1)
        return {"image": image, "mask": mask}


class SegmentationData(BaseDataModule):
    def create_data(self) -> None:
        self.train_dataset = Scenes(400, seed=0, flip=True)
        self.val_dataset = Scenes(80, seed=1)
        self.test_dataset = self.predict_dataset = self.val_dataset


def convolutions(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()),
        *(nn.Conv2d(n_out, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()),
    )


class UNet(nn.Module):
    """Logits (B, K, H, W). Coarser maps see more of the image, finer ones say where."""

    def __init__(self, w: int, n_classes: int) -> None:
        super().__init__()
        self.fine, self.middle = convolutions(3, w), convolutions(w, 2 * w)
        self.coarse, self.up_middle = convolutions(2 * w, 4 * w), convolutions(6 * w, 2 * w)
        self.up_fine, self.head = convolutions(3 * w, w), nn.Conv2d(w, n_classes, 1)
        self.shrink, self.grow = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images)
        middle = self.middle(self.shrink(fine))
        coarse = self.coarse(self.shrink(middle))
        middle = self.up_middle(torch.cat([self.grow(coarse), middle], 1))
        return self.head(self.up_fine(torch.cat([self.grow(middle), fine], 1)))


class SegmentationModule(BaseModule):
    def __init__(self, width: int = 12, learning_rate: float = 5e-3, **kwargs) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()

    def create_model(self) -> None:
        self.model = UNet(self.hparams.width, len(COLOURS))

    def create_loss(self) -> None:
        self.loss_fn = nn.CrossEntropyLoss()

    def create_optimiser(self) -> None:
        self.optimiser = torch.optim.Adam(self.model.parameters(), self.hparams.learning_rate)

    def create_metrics(self) -> None:
        miou = MulticlassJaccardIndex(len(COLOURS), validate_args=False)
        self.train_metrics = MetricCollection({"miou": miou})
        self.val_metrics = self.train_metrics.clone()

    def forward_model(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch["image"])

    def forward_loss(self, batch: dict[str, Tensor], output: Tensor) -> Tensor:
        return self.loss_fn(output, batch["mask"])

    def update_metrics(self, metrics, batch: dict[str, Tensor], output: Tensor) -> None:
        metrics.update(output, batch["mask"])

    def visualise(self, batch: dict[str, Tensor], output: Tensor, mode: str) -> None:
        """Rows: images, their true classes, those that are found."""
        rows = [batch["image"][:8]]
        for classes in (batch["mask"][:8], output[:8].argmax(1)):
            overlay = COLOURS.to(self.device)[classes].permute(0, 3, 1, 2)
            rows.append((rows[0] + overlay) / 2)
        grid = make_grid(torch.cat(rows), nrow=len(rows[0]))
        self.tensorboard.add_image(f"{mode}/overlays", grid, self.global_step)
