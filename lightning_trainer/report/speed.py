"""The line at the start that says which settings for speed are on."""

from typing import Any

import lightning.pytorch as pl
import torch

from lightning_trainer.base.compiling import CompiledStep
from lightning_trainer.base.fusing import is_fused
from lightning_trainer.internals import is_compiled


def speed_line(trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
    """Such as `Speed: matmul_precision high, benchmark on, fused Adam, compile off`.

    Each setting has the name of its key. What torch was told counts, not the settings: a project
    may have told it otherwise.
    """
    optimisers = [
        f"{'' if is_fused(each) else 'un'}fused {type(each).__name__}"
        for each in trainer.optimizers
    ]
    modes = [str(step.mode) for step in pl_module.modules() if isinstance(step, CompiledStep)]
    modes.append("on" if is_compiled(pl_module) else "off")
    parts = [
        f"matmul_precision {_matmul_precision()}",
        f"benchmark {'on' if torch.backends.cudnn.benchmark else 'off'}",
        *optimisers,
        f"compile {modes[0]}",
    ]
    return f"Speed: {', '.join(parts)}"


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses where a project has set its newer flag instead
        flags: Any = torch.backends.cuda.matmul
        return str(flags.fp32_precision)
