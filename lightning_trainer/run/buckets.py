"""SettleBuckets: what DDP does otherwise in the first step of a start than in later ones."""

from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_trainer.run.state import RunCallback


class SettleBuckets(RunCallback):
    """Lets DDP sort the parameters into its buckets before the first step instead of after it.

    DDP adds up its first step in one bucket, and later ones in buckets by the order in which
    gradients were ready. A number's place in its bucket decides which process is added first, so
    each start would have one step with other last bits. For two processes the order makes no
    difference.

    Where a project steps its optimisers itself, DDP sends the first process's buffers to the others
    at that step alone. Here it does so at each validation, as a restart does.
    """

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Does a step of its own whose gradients are zero; all processes meet here."""
        ddp: Any = trainer.strategy.model
        if trainer.world_size > 2 and rebuilds_buckets(ddp) and not keeps_first_bucket(ddp):
            trained = [p for p in ddp.module.parameters() if p.requires_grad]
            before = [p.grad for p in trained]
            inner = vars(ddp.module)
            inner["forward"] = lambda: _zero(trained)
            try:
                with torch.enable_grad():
                    ddp().backward()
            finally:
                del inner["forward"]
            for parameter, gradient in zip(trained, before, strict=True):
                parameter.grad = gradient

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        ddp = trainer.strategy.model
        if isinstance(ddp, DistributedDataParallel) and not pl_module.automatic_optimization:
            for buffer in pl_module.buffers():
                dist.broadcast(buffer, 0)


def rebuilds_buckets(model: Any) -> bool:
    """Whether DDP changes its buckets after its first step."""
    return isinstance(model, DistributedDataParallel) and not model.find_unused_parameters


def keeps_first_bucket(ddp: Any) -> bool:
    """Whether a step of zeros would not do: the graph must stay, or gradients are sparse."""
    sparse = any(
        isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse for m in ddp.module.modules()
    )
    return bool(ddp.static_graph) or sparse


def _zero(parameters: list[nn.Parameter]) -> Tensor:
    """Zero, by all parameters; the gradient of the last one is ready first."""
    terms = [(parameter * 0).sum().float() for parameter in parameters]
    return torch.stack(terms).sum()
