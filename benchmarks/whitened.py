"""The fast recipe's network with a first layer that is computed from the images, not trained."""

import torch
from torch.nn.functional import unfold

from projects.cifar_fast import FastCifarModule


class WhitenedModule(FastCifarModule):
    """Filters that whiten patches of the training images, each with its negative.

    As in Page (2019), "How to train your ResNet 8", and Jordan (2024), arXiv:2404.00498.
    """

    def create_model(self) -> None:
        super().create_model()
        normalise, (stem, *_) = self.model[0], self.model[1]
        images = normalise(self.trainer.datamodule.train_dataset.images[:5000].float())
        patches = unfold(images, stem.kernel_size, stride=stem.stride)  # (B, 3*k*k, patches)
        patches = patches.transpose(0, 1).flatten(1)
        variances, vectors = torch.linalg.eigh(patches @ patches.T / patches.shape[1])
        n_filters = stem.out_channels // 2
        filters = (vectors / (variances + 5e-4).sqrt())[:, -n_filters:].T
        with torch.no_grad():
            stem.weight.copy_(torch.cat([filters, -filters]).view_as(stem.weight))
        stem.weight.requires_grad = False
