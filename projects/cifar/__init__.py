"""The guide's example: a small convolutional network on CIFAR-10.

python cli.py fit --config configs/cifar.yaml
"""

from projects.cifar.data import CifarData, Images
from projects.cifar.module import CifarModule, Normalise

__all__ = ["CifarData", "CifarModule", "Images", "Normalise"]
