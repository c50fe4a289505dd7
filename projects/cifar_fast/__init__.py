"""CIFAR-10 in about a minute on two processor cores, or seconds on a GPU: extends `projects.cifar`.

python cli.py fit --config configs/cifar_fast.yaml
"""

from projects.cifar_fast.data import FastCifarData
from projects.cifar_fast.module import FastCifarModule

__all__ = ["FastCifarData", "FastCifarModule"]
