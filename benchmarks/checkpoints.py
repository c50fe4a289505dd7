"""What a checkpoint that no crash can break costs, against Lightning's own.

python benchmarks/checkpoints.py
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import alternate, report, spread
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_trainer.checkpoints.files import AtomicCheckpointIO
from lightning_trainer.checkpoints.staging import copy_to_host


def time_saves(n_bytes: int, n_rounds: int, folder: Path) -> str:
    checkpoint = {"state_dict": {"w": torch.rand(n_bytes // 4)}, "global_step": 1}
    own, lightnings = AtomicCheckpointIO(), TorchCheckpointIO()

    def save(io: TorchCheckpointIO, name: str) -> Callable[[], float]:
        def timed() -> float:
            started_s = time.perf_counter()
            io.save_checkpoint(checkpoint, folder / name)
            return time.perf_counter() - started_s

        return timed

    def copy() -> float:
        started_s = time.perf_counter()
        copy_to_host(checkpoint)
        return time.perf_counter() - started_s

    things = {
        "Lightning's own": save(lightnings, "lightning.ckpt"),
        "written beside, flushed, read back, renamed": save(own, "own.ckpt"),
        "only copied, as where a thread writes it": copy,
    }
    values = alternate(things, n_rounds)
    return f"{n_bytes / 1e6:.1f} MB, {n_rounds} of each:\n\n{spread(values, 'ms', 1e3)}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        sizes = ((100_000, 30), (400_000_000, 7))
        texts = [time_saves(n_bytes, n_rounds, Path(temporary)) for n_bytes, n_rounds in sizes]
    last = (
        "Lightning's own is neither flushed nor read back, and holds the file a second time. The "
        "copy measured is from host to host. One from a GPU goes into pinned memory, and training "
        "does not wait for it: not measured."
    )
    report("A checkpoint", "\n\n".join([*texts, last]))
