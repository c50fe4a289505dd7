"""The line at the start that says which settings for speed are on."""

from typing import Any

import lightning.pytorch as pl
import torch

from lightning_trainer.base.compiling import compile_mode
from lightning_trainer.base.fusing import is_fused


def speed_line(trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
    """Such as `Speed: matmul_precision high, benchmark on, fused Adam, compile off`.

    Each setting has the name of its key. What torch was told counts, not the settings: a project
    may have told it otherwise.
    """
    optimisers = [
        f"{'' if is_fused(each) else 'un'}fused {type(each).__name__}"
        for each in trainer.optimizers
    ]
    parts = [
        f"matmul_precision {_matmul_precision()}",
        f"benchmark {'on' if torch.backends.cudnn.benchmark else 'off'}",
        *optimisers,
        f"compile {compile_mode(pl_module)}",
    ]
    return f"Speed: {', '.join(parts)}"


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses where a project has set its newer flag instead
        flags: Any = torch.backends.cuda.matmul
        return str(flags.fp32_precision)
