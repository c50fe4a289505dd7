"""CIFAR-10 in about a minute on two processor cores: extends `projects.cifar`.

`configs/cifar_fast_gpu.yaml` is a wider network for a GPU, on which it has not been measured.

python cli.py fit --config configs/cifar_fast.yaml
"""

from projects.cifar_fast.data import FastCifarData
from projects.cifar_fast.module import FastCifarModule
from projects.cifar_fast.whitened import WhitenedCifarModule

__all__ = ["FastCifarData", "FastCifarModule", "WhitenedCifarModule"]
