"""Detection: a network that says at once, for each cell of an image, whether and where a box is.

Shows a different number of boxes in each image, a loss of named parts, a metric of one's own.

python cli.py fit --config configs/detection.yaml
"""

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchvision.ops import box_iou, generalized_box_iou_loss, nms
from torchvision.utils import draw_bounding_boxes, make_grid

from lightning_trainer import BaseDataModule, BaseModule

Batch = dict[str, Tensor | list[Tensor]]
CELL, N = 8, 6  # pixels of a cell, cells of a row: images are 48 pixels wide
MIDDLES = torch.cartesian_prod(*2 * [CELL * (torch.arange(N) + 0.5)]).flip(1)  # (N * N, 2), x and y


def make_scene(n_boxes: int, generator: torch.Generator) -> dict[str, Tensor]:
    """An image (3, H, W) of filled boxes in noise, and their left, top, right, bottom in pixels."""
    size = torch.randint(8, 22, (n_boxes, 2), generator=generator)
    place = (torch.rand(n_boxes, 2, generator=generator) * (CELL * N - size)).long()
    boxes = torch.cat([place, place + size], dim=1)
    image = 0.3 * torch.rand(3, CELL * N, CELL * N, generator=generator)
    for left, top, right, bottom in boxes.tolist():
        image[:, top:bottom, left:right] += torch.rand(3, 1, 1, generator=generator) / 2
    return {"image": image, "boxes": boxes.float()}


class Scenes(list):  # a list will do as a dataset
    @staticmethod
    def collate_fn(scenes: list[dict[str, Tensor]]) -> Batch:
        images = torch.stack([scene["image"] for scene in scenes])
        return {"image": images, "boxes": [scene["boxes"] for scene in scenes]}


class DetectionData(BaseDataModule):
    def create_data(self) -> None:
        generator = torch.Generator().manual_seed(0)
        scenes = [make_scene(i % 3 + 1, generator) for i in range(690)]
        self.train_dataset, self.val_dataset = Scenes(scenes[:600]), Scenes(scenes[600:])
        self.test_dataset = self.predict_dataset = self.val_dataset


class AveragePrecision(Metric):
    """Mean over all boxes of the precision down to the answer that overlaps it by half, or of 0."""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("answers", [], dist_reduce_fx="cat")
        self.add_state("n_boxes", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, boxes: Tensor, truth: Tensor) -> None:  # the surest first
        overlaps, hits = box_iou(boxes, truth), torch.zeros_like(scores)
        for i, overlap in enumerate(overlaps):
            if overlap.max() >= 0.5:
                hits[i], overlaps[:, overlap.argmax()] = 1, 0
        self.answers.append(torch.stack([scores, hits], dim=1))
        self.n_boxes += len(truth)

    def compute(self) -> Tensor:
        scores, hits = dim_zero_cat(self.answers).T
        hits = hits[scores.argsort(descending=True)]
        precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1, device=hits.device)
        return (precision * hits).sum() / self.n_boxes


class DetectionModule(BaseModule):
    def __init__(self, width: int = 32, learning_rate: float = 3e-3, **kwargs) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()

    def create_model(self) -> None:
        w, layers = self.hparams.width, []
        for n_in, stride in ((3, 2), (w, 2), (w, 2), (w, 1)):
            layers += [nn.Conv2d(n_in, w, 3, stride, 1), nn.BatchNorm2d(w), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.Conv2d(w, 5, 1))

    def create_loss(self) -> None:
        self.loss_fn = nn.BCEWithLogitsLoss()

    def create_optimiser(self) -> None:
        self.optimiser = torch.optim.Adam(self.model.parameters(), self.hparams.learning_rate)

    def create_metrics(self) -> None:
        self.train_metrics, self.val_metrics = AveragePrecision(), AveragePrecision()

    def forward_model(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """For each cell a score, a logit (B, N * N), and a box around its middle (B, N * N, 4)."""
        scores, place, size = self.model(batch["image"]).flatten(2).mT.split([1, 2, 2], dim=2)
        middles, half = MIDDLES.to(self.device) + CELL * place, CELL * size.exp()
        return scores.squeeze(2), torch.cat([middles - half, middles + half], dim=2)

    def forward_loss(self, batch: Batch, output: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        scores, boxes = output
        image = torch.cat([0 * b[:, 0] + i for i, b in enumerate(batch["boxes"])]).long()
        truth = torch.cat(batch["boxes"])
        x, y = ((truth[:, :2] + truth[:, 2:]) / 2 // CELL).long().T  # the cell of its middle
        wanted, cell = torch.zeros_like(scores), N * y + x
        wanted[image, cell] = 1
        overlap = generalized_box_iou_loss(boxes[image, cell], truth, reduction="mean")
        return {"object": self.loss_fn(scores, wanted), "box": overlap}

    def update_metrics(self, metrics, batch: Batch, output: tuple[Tensor, Tensor]) -> None:
        for scores, boxes, truth in zip(*output, batch["boxes"], strict=True):
            kept = nms(boxes, scores, 0.5)[:10]
            metrics.update(scores[kept], boxes[kept], truth)

    def visualise(self, batch: Batch, output: tuple[Tensor, Tensor], mode: str) -> None:
        drawn = []
        for image, scores, boxes in zip(batch["image"][:8], *output, strict=False):
            kept = nms(boxes, scores, 0.5)
            found = boxes[kept[: max(int((scores[kept] > 0).sum()), 1)]]  # the surest, if none is
            drawn.append(draw_bounding_boxes(image, found, colors="white"))
        self.tensorboard.add_image(f"{mode}/boxes", make_grid(drawn), self.global_step)
