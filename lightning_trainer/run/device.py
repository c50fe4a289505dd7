"""What a run knows of its GPUs: when their work is done, and what decides their last bits."""

from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_trainer.run.state import RunState
from lightning_trainer.session.environment import gpu_driver


def on_gpu(trainer: pl.Trainer) -> bool:
    """Whether the host only enqueues the work, and goes on before the device has done it."""
    return trainer.strategy.root_device.type == "cuda"


def settle(trainer: pl.Trainer, run: RunState) -> None:
    """Waits for all work of a GPU, and notes the time in `run.settled_s`.

    To be called where training pauses: the steps that are still in the queue would count as a part
    of the pause.
    """
    if on_gpu(trainer):
        torch.cuda.synchronize(trainer.strategy.root_device)
        run.settled_s = perf_counter()


def uses_tf32() -> tuple[bool, bool]:
    """Whether float32 matrix products, and convolutions, are allowed to round to TF32."""
    backends: Any = torch.backends
    if hasattr(backends.cudnn, "conv"):  # since torch 2.9; the older flags set these as well
        flags = backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision
        return flags[0] == "tf32", flags[1] == "tf32"
    return backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32


def describe_gpus(trainer: pl.Trainer) -> dict[str, Any]:
    """For environment.yaml: this machine's GPUs that the run uses, and how they compute."""
    if not on_gpu(trainer):
        return {"gpus": []}
    names = [torch.cuda.get_device_name(index) for index in trainer.device_ids]
    matmul_tf32, convolution_tf32 = uses_tf32()
    has_nccl = torch.distributed.is_nccl_available()
    return {
        "gpus": [", ".join(filter(None, (name, gpu_driver()))) for name in names],
        "gpu_libraries": {
            "cuda": torch.version.cuda or torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None,
        },
        "gpu_kernels": {
            "matmul_tf32": matmul_tf32,
            "convolution_tf32": convolution_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        },
    }
