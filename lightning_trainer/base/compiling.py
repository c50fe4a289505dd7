"""Compiled steps: output, loss and the loss's backward in one graph."""

import warnings
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_trainer.internals import is_compiled

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]

# These replay CUDA graphs, which write each step's results to the same memory.
_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")


def output_and_loss(module: Any, batch: Any) -> tuple[Any, Any]:
    """What a project's two hooks return for a batch."""
    output = module.forward_model(batch)
    return output, module.forward_loss(batch, output)


class CompiledStep(nn.Module):
    """`output_and_loss`, compiled.

    It is a module, because a copy of a module leaves out the compiled code.

    Sizes are fixed, so that each has its own graph: one for all sizes would depend on which of them
    came first, and a restart would not be exact.

    Args:
        model: Compiled as well, in place, for steps of the project's own.
        mode: Of `torch.compile`; true is "default". Those with CUDA graphs are "reduce-overhead"
            and "max-autotune".
        warms_up: Whether the first batch of the training compiles a validation's graph as well.
            The first validation would otherwise take longer, and the time left be too long.

    Raises:
        ValueError: At the first batch, if gradients are added up where graphs overwrite them.
    """

    def __init__(self, model: Any, mode: Mode | Literal[True], warms_up: bool) -> None:
        super().__init__()
        self.mode = "default" if mode is True else mode
        self.copies = mode in _CUDA_GRAPHS
        self._is_cold, self._warms_up = True, warms_up
        for each in (model, self):
            each.compile(mode=self.mode, dynamic=False)

    def forward(self, module: Any, batch: Any) -> tuple[Any, Any]:
        return output_and_loss(module, batch)

    def run(self, module: Any, batch: Any) -> tuple[Any, Any]:
        """Output and loss; copies of them where the next step would overwrite them."""
        if self._is_cold and module.training:
            self._is_cold = False
            self._start(module, batch)
        if self.copies:
            torch.compiler.cudagraph_mark_step_begin()
        output: tuple[Any, Any] = self.copied(self(module, batch))
        return output

    def copied(self, output: Any) -> Any:
        return apply_to_collection(output, Tensor, Tensor.clone) if self.copies else output

    def _start(self, module: Any, batch: Any) -> None:
        trainer = module.trainer
        if self.copies and trainer.accumulate_grad_batches > 1:
            raise ValueError(
                f"`model.compile` is {self.mode!r}, whose CUDA graphs overwrite the gradients "
                "that `trainer.accumulate_grad_batches` adds up: use another mode"
            )
        if self._warms_up and trainer.enable_validation:
            self._warm_up(module, batch)

    def _warm_up(self, module: Any, batch: Any) -> None:
        """Runs a batch of the training as one of a validation, and leaves no trace."""
        layers = list(module.modules())
        training = [layer for layer in layers if layer.training]
        buffers = [
            (layer, name, buffer, buffer.clone())
            for layer in layers
            for name, buffer in layer.named_buffers(recurse=False)
        ]
        module.eval()
        try:
            with isolate_rng(), torch.no_grad():  # as Lightning validates within a training
                self.run(module, batch)
        except Exception as ex:  # the batch may lack what only a validation needs
            warnings.warn(f"the first validation has to be compiled: {ex!r}", stacklevel=2)
        finally:
            # Before 2.10 torch would use weights that autocast has cast without gradients again.
            torch.clear_autocast_cache()
            for layer in training:
                layer.training = True
            with torch.no_grad():
                for layer, name, buffer, value in buffers:
                    setattr(layer, name, buffer.copy_(value))  # the hooks may have set another


def compile_mode(pl_module: nn.Module) -> str:
    """The mode of a `BaseModule`'s compiled steps; "on" for a project's own, or "off"."""
    modes = [str(step.mode) for step in pl_module.modules() if isinstance(step, CompiledStep)]
    return modes[0] if modes else "on" if is_compiled(pl_module) else "off"
