"""A narrow network with Muon, which learns as much in five epochs as the guide's in many."""

from pytorch_optimizer import Muon
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR

from projects.cifar import CifarModule, Normalise


def block(*layers: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(*layers, nn.BatchNorm2d(width, momentum=0.4), nn.GELU())


def convolution(n_in: int, n_out: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)


class Maximum(nn.Module):
    """The maximum of each channel, (B, C, H, W) to (B, C, 1, 1).

    The values and gradients of `nn.AdaptiveMaxPool2d(1)`, which on a GPU has no deterministic
    backward: `--trainer.deterministic true` would end in an error.
    """

    def forward(self, maps: Tensor) -> Tensor:
        return nn.functional.max_pool2d(maps, maps.shape[2:])


class FastCifarModule(CifarModule):
    """Two convolutions, groups of two more at half the size, the maximum, a linear layer.

    Args:
        stem_width: Channels of the first two convolutions.
        stem_stride: Of the first convolution, whose kernel is twice as large.
        widths: Channels of each group.
        learning_rate: Of Muon, for the kernels of the convolutions; falls linearly to zero.
        other_learning_rate: Of AdamW, for all else.
        label_smoothing: Share of the label that is spread over all classes.
        muon: Whether kernels are Muon's; else all is AdamW's.
    """

    def __init__(
        self,
        stem_width: int = 32,
        stem_stride: int = 2,
        widths: tuple[int, ...] = (64, 128),
        learning_rate: float = 0.2,
        other_learning_rate: float = 5e-3,
        label_smoothing: float = 0.1,
        muon: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.save_hyperparameters()

    def create_model(self) -> None:
        hp = self.hparams
        stride, width = hp.stem_stride, hp.stem_width
        stem = nn.Conv2d(3, width, 2 * stride, stride, padding=stride // 2, bias=False)
        second = convolution(width, width)
        layers = [Normalise(), block(stem, width=width), block(second, width=width)]
        for n_in, n_out in zip([width, *hp.widths], hp.widths, strict=False):
            layers += [nn.MaxPool2d(2), block(convolution(n_in, n_out), width=n_out)]
            layers += [block(convolution(n_out, n_out), width=n_out)]
        head = nn.Linear(hp.widths[-1], hp.n_classes, bias=False)
        self.model = nn.Sequential(*layers, Maximum(), nn.Flatten(), head)

    def create_loss(self) -> None:
        self.loss_fn = nn.CrossEntropyLoss(label_smoothing=self.hparams.label_smoothing)

    def create_optimiser(self) -> None:
        kernels = [p for p in self.model.parameters() if p.ndim == 4 and p.requires_grad]
        others = [p for p in self.model.parameters() if p.ndim < 4]
        hp = self.hparams
        groups = [{"params": others, "lr": hp.other_learning_rate, "use_muon": False}]
        if hp.muon:
            groups.append({"params": kernels, "lr": hp.learning_rate, "use_muon": True})
        else:
            groups[0]["params"] += kernels
        self.optimiser = Muon(groups, momentum=0.6, ns_steps=3)
        n_iterations = int(self.trainer.estimated_stepping_batches)
        self.scheduler = LinearLR(self.optimiser, 1.0, 0.0, n_iterations)
