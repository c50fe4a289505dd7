"""A larger network whose first layer whitens: for minutes instead of one."""

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from projects.cifar import Normalise
from projects.cifar_fast.module import FastCifarModule, Maximum, block, convolution


class WhitenedCifarModule(FastCifarModule):
    """The layout of airbench94, narrower: Jordan (2024), arXiv:2404.00498.

    The first layer is computed from the training images and not trained. Each group has half the
    size from its first convolution on.
    """

    def create_model(self) -> None:
        hp = self.hparams
        stride, width, widths = hp.stem_stride, hp.stem_width, hp.widths
        stem = nn.Conv2d(3, width, 2 * stride, stride, padding=stride // 2, bias=False)
        layers = [Normalise(), block(stem, width=width)]
        for n_in, n_out in zip([width, *widths], widths, strict=False):
            layers += [block(copying(n_in, n_out), nn.MaxPool2d(2), width=n_out)]
            layers += [block(copying(n_out, n_out), width=n_out)]
        head = nn.Linear(widths[-1], hp.n_classes, bias=False)
        self.model = nn.Sequential(*layers, Maximum(), nn.Flatten(), head)
        images = self.trainer.datamodule.train_dataset.images[:5000].cpu()
        whiten(stem, self.model[0](images))


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
