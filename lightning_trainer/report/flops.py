"""ReportFlops: the training's floating point operations a second, and their share of the peak."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_trainer.base.losses import of_step
from lightning_trainer.base.module import BaseModule
from lightning_trainer.internals import is_compiled
from lightning_trainer.internals_of_hooks import call_hooks, skip_hooks
from lightning_trainer.report.loggers import log_to_all
from lightning_trainer.report.peaks import peak_tflops
from lightning_trainer.run.device import on_gpu, uses_tf32
from lightning_trainer.run.state import Progress, RunState

# Only the batch that is counted needs them.
_HOOKS_OF_COUNT = ("on_train_batch_start", "on_after_backward")
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


class ReportFlops(Callback):
    """Prints and logs with each log line a device's TFLOP/s, and their share of its peak.

    FLOPs of forward and backward count, two for each multiply-add. `torch.utils.flop_counter` knows
    matrix products, convolutions and attention (a mask saves nothing); all other operators and your
    own kernels count as none. They are counted in the first batch after a start; later steps cost
    nothing more. Assumes that later batches need as much for an example, and that no two processes
    work on the same example. With manual optimisation the optimiser's steps are counted as well.

    The rate is FLOPs an example x examples/s of the log line / processes. MFU, model FLOPs
    utilisation, is its share of the device's peak (Chowdhery et al. 2022, PaLM, appendix B). Their
    definition leaves out activation checkpointing's second forward; here it counts.

    A compiled model (`--model.compile true`, or a compiled module in it) is counted in an extra
    forward and backward without the compiler, which leave no trace in weights, buffers, gradients
    and random numbers. If only a function within the model is compiled, the first batch runs it
    without the compiler, and the last bits of its results may differ.

    Args:
        peak_tflops: Peak of one device in TFLOP/s at the precision of the training, without
            sparsity. By default that of `report/peaks.py`, which knows common GPUs in 16 bits,
            TF32 and float32; float32 is taken for TF32 where that is allowed, for convolutions if
            the model has any.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        if peak_tflops is not None and peak_tflops <= 0:
            raise ValueError(f"`peak_tflops` is {peak_tflops}: give a positive number, or leave it")
        self.peak_tflops = peak_tflops
        self._counter: FlopCounterMode | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._run = RunState.of(trainer, self)
        self._reported = self._run.line
        self._peak_tflops = self.peak_tflops or _find_peak(trainer, pl_module)
        self._flops = 0.0  # of an example
        call_hooks(self, _HOOKS_OF_COUNT)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self._n_examples = pl_module.count_examples(batch)
        if not is_compiled(pl_module):
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()
        elif type(pl_module).training_step is BaseModule.training_step:
            self._set(trainer, _count_apart(trainer, pl_module, batch))
        else:
            self._set(trainer, 0)  # the project's own step may do anything

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends the count before the optimiser's step."""
        if pl_module.automatic_optimization and self._counter:
            self._set(trainer, self._stop())

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Reports if there is a new line."""
        if self._counter:
            n_flops = self._stop()
            if not pl_module.automatic_optimization:
                self._set(trainer, n_flops)  # else the batch was skipped: count the next
        line = self._run.line
        if line is not self._reported:
            self._reported = line
            if line and self._flops:
                self._report(trainer, line)

    def on_exception(self, *_: Any) -> None:
        self._stop()

    def _stop(self) -> int:
        counter, self._counter = self._counter, None
        if counter is None:
            return 0
        counter.__exit__(None, None, None)
        return counter.get_total_flops()

    def _set(self, trainer: pl.Trainer, n_flops: int) -> None:
        self._flops = n_flops / self._n_examples
        skip_hooks(self, _HOOKS_OF_COUNT)
        if trainer.is_global_zero:
            what = f"{self._flops:,.0f} in forward and backward" if n_flops else "could not count"
            print(f"FLOPs an example: {what}", flush=True)

    def _report(self, trainer: pl.Trainer, line: Progress) -> None:
        tflops = self._flops * line.examples_per_s / trainer.world_size / 1e12
        metrics = {"timing/tflops": tflops}
        text = f"Achieved: {tflops:{'.2f' if tflops >= 1 else '.3g'}} TFLOP/s a device"
        if self._peak_tflops:
            metrics["timing/mfu"] = tflops / self._peak_tflops
            text += f" (MFU {metrics['timing/mfu']:.1%} of {self._peak_tflops:g} TFLOP/s)"
        if trainer.is_global_zero:
            print(text, flush=True)
        log_to_all(trainer, metrics, line.iteration)


def _find_peak(trainer: pl.Trainer, pl_module: pl.LightningModule) -> float | None:
    """The peak of one GPU; asks for it where it is not known."""
    if not on_gpu(trainer):
        return None
    name = torch.cuda.get_device_name(trainer.strategy.root_device)
    precision = str(trainer.precision)
    of_matmul, of_convolution = uses_tf32()
    has_convolution = any(isinstance(module, _CONVOLUTIONS) for module in pl_module.modules())
    peak = peak_tflops(name, precision, of_matmul or (of_convolution and has_convolution))
    if peak is None and trainer.is_global_zero:
        print(
            f"MFU: the peak of {name} at {precision} is not known: give `peak_tflops`", flush=True
        )
    return peak


class _Step(nn.Module):
    """Forward and backward as a module, whose buffers can be replaced."""

    def __init__(self, pl_module: BaseModule) -> None:
        super().__init__()
        self.pl_module = pl_module

    def forward(self, batch: Any) -> None:
        module = self.pl_module
        loss = module.forward_loss(batch, module.forward_model(batch))
        loss = loss if isinstance(loss, Tensor) else of_step(module, loss)["loss"]
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        torch.autograd.grad(loss, weights, allow_unused=True)  # unlike `backward`, sets no `.grad`


def _count_apart(trainer: pl.Trainer, pl_module: BaseModule, batch: Any) -> int:
    """FLOPs of `batch` without the compiler, which hides them; changes no state."""
    step, batch = _Step(pl_module), apply_to_collection(batch, Tensor, Tensor.clone)
    buffers = {name: buffer.clone() for name, buffer in step.named_buffers()}
    precision = trainer.precision_plugin.train_step_context()
    counter = FlopCounterMode(display=False)
    with isolate_rng(), torch.compiler.set_stance("force_eager"), precision, counter:
        torch.func.functional_call(step, buffers, (batch,))
    return counter.get_total_flops()
