"""A larger network whose first layer whitens: for minutes instead of one."""

from collections.abc import Callable
from itertools import islice
from math import inf
from typing import Any

import torch
from pytorch_optimizer import Muon
from torch import Tensor, nn
from torch.nn.functional import unfold
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LinearLR

from projects.cifar import Normalise
from projects.cifar_fast.module import FastCifarModule, Maximum, block, convolution


class WhitenedCifarModule(FastCifarModule):
    """The layout and the optimisers of airbench94_muon, narrower: Jordan (2024), arXiv:2404.00498.

    The kernels of the first layer are computed from the training images and not trained, and no
    norm follows it. Each group has half the size from its first convolution on. Of the norms only
    the biases are trained.

    Args:
        learning_rate: Of Muon, for the kernels of the convolutions; falls linearly to zero, as do
            the other two.
        head_learning_rate: Of SGD, for the last layer, by the sum of the losses of a batch.
        bias_learning_rate: The same for all biases.
        stem_share: Share of the iterations in which the bias of the first layer is trained: then
            backward ends before its large maps. With several processes it is trained to the end,
            because DDP waits for the gradients of all weights.
        label_smoothing: Share of the label that is spread over all classes.
    """

    def __init__(
        self,
        learning_rate: float = 0.2,
        head_learning_rate: float = 0.67,
        bias_learning_rate: float = 0.053,
        stem_share: float = 0.3,
        label_smoothing: float = 0.2,
        **kwargs,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            label_smoothing=label_smoothing,
            other_learning_rate=0.0,
            muon=True,
            **kwargs,
        )
        self.save_hyperparameters()

    def create_model(self) -> None:
        hp = self.hparams
        stride, width, widths = hp.stem_stride, hp.stem_width, hp.widths
        stem = nn.Conv2d(3, width, 2 * stride, stride, padding=stride // 2)
        layers = [Normalise(), nn.Sequential(stem, nn.GELU())]
        for n_in, n_out in zip([width, *widths], widths, strict=False):
            layers += [block(copying(n_in, n_out), nn.MaxPool2d(2), width=n_out)]
            layers += [block(copying(n_out, n_out), width=n_out)]
        head = nn.Linear(widths[-1], hp.n_classes, bias=False)
        self.model = nn.Sequential(*layers, Maximum(), nn.Flatten(), head, Scale(1 / widths[-1]))
        images = self.trainer.datamodule.train_dataset.images[:5000].cpu()
        whiten(stem, self.model[0](images))
        nn.init.zeros_(stem.bias)
        for norm in self.model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.requires_grad = False

    def create_optimiser(self) -> None:
        hp = self.hparams
        weights = [p for p in self.model.parameters() if p.requires_grad]
        kernels = [p for p in weights if p.ndim == 4]
        n = self.trainer.datamodule.batch_size * self.trainer.world_size  # of a sum, not a mean
        rates = {1: hp.bias_learning_rate, 2: hp.head_learning_rate}
        others = [
            {
                "params": [p for p in weights if p.ndim == n_dims],
                "lr": n * rate,
                "weight_decay": 2e-6 / rate,
            }
            for n_dims, rate in rates.items()
        ]
        groups = [{"params": kernels, "lr": hp.learning_rate, "use_muon": True}]
        muon = Muon(groups, momentum=0.6, ns_steps=3)
        self.optimiser = Together(muon, SGD(others, momentum=0.85, nesterov=True))
        self.optimiser.register_step_post_hook(lambda *_: set_norms(kernels))
        n_iterations = int(self.trainer.estimated_stepping_batches)
        self.scheduler = LinearLR(self.optimiser, 1.0, 0.0, n_iterations)
        self.stem_iterations = hp.stem_share * n_iterations if self.trainer.world_size == 1 else inf

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        if self.global_step >= self.stem_iterations:
            self.model[1][0].bias.requires_grad = False


class Together(Optimizer):
    """Steps several optimisers as one, which has the groups and the state of all."""

    def __init__(self, *optimisers: Optimizer) -> None:
        super().__init__([group for each in optimisers for group in each.param_groups], {})
        self.optimisers = optimisers

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure:
            with torch.enable_grad():
                loss = closure()
        groups = iter(self.param_groups)
        for each in self.optimisers:  # these two were replaced when a checkpoint was loaded
            each.state, n_groups = self.state, len(each.param_groups)
            each.param_groups = [*islice(groups, n_groups)]
            each.step()
        return loss


class Scale(nn.Module):
    """Multiplies by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:
        return values * self.factor


@torch.no_grad()
def set_norms(kernels: list[Tensor]) -> None:
    """Gives each kernel, (C_out, C_in, k, k), the norm of C_out filters of norm 1."""
    for kernel in kernels:
        kernel.mul_(len(kernel) ** 0.5 / kernel.norm())


def copying(n_in: int, n_out: int) -> nn.Conv2d:
    """A convolution whose first channels copy its input at the beginning."""
    layer = convolution(n_in, n_out)
    nn.init.dirac_(layer.weight.data[:n_in])
    return layer


def whiten(layer: nn.Conv2d, images: Tensor) -> None:
    """Freezes filters that whiten patches of the images, each with its negative.

    As in Page (2019), "How to train your ResNet 8", and Jordan (2024), arXiv:2404.00498.
    """
    patches = unfold(images, layer.kernel_size, stride=layer.stride)  # (B, 3*k*k, patches)
    patches = patches.transpose(0, 1).flatten(1)
    variances, vectors = torch.linalg.eigh(patches @ patches.T / patches.shape[1])
    filters = (vectors / (variances + 5e-4).sqrt())[:, -(layer.out_channels // 2) :].T
    layer.weight.data.copy_(torch.cat([filters, -filters]).view_as(layer.weight))
    layer.weight.requires_grad = False
