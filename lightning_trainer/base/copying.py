"""CopyAhead: batches that are on the GPU in time, copied beside the steps that still compute."""

from collections import deque
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

_LEAST_BYTES = 8 * 2**20  # of a batch; a smaller one is copied in 0.3 ms at 25 GB/s


class CopyAhead:
    """Hands out batches that were copied to a GPU on a stream of their own.

    On the step's stream a copy would wait for all steps that are queued there. Here only the step
    that uses a batch waits for its copy, and the host waits for nothing. The first batch of an
    epoch decides whether copying pays. A dict's pinned tensors are copied; Lightning moves all
    else.

    Args:
        device: A GPU.
        n_ahead: Batches that are taken, and whose copies begin, before they are asked for.
    """

    def __init__(self, device: torch.device, n_ahead: int) -> None:
        self.device, self.n_ahead = device, n_ahead

    def __call__(self, batches: Iterator[Any]) -> Iterator[Any]:
        pays: bool | None = None
        waiting: deque[tuple[Any, ...]] = deque()
        for batch in batches:
            if pays is None:
                pays = sum(tensor.nbytes for tensor in _pinned(batch).values()) >= _LEAST_BYTES
            if not pays:
                yield batch
                del batch  # its memory may serve the next one
                continue
            waiting.append(self._copy(batch))
            del batch
            if len(waiting) > self.n_ahead:
                yield self._hand_over(*waiting.popleft())
        while waiting:
            yield self._hand_over(*waiting.popleft())

    @cached_property
    def _stream(self) -> Any:  # one for all epochs: memory that it frees serves no other stream
        return torch.cuda.Stream(self.device)

    def _copy(self, batch: Any) -> tuple[Any, dict[str, Tensor], Any]:
        with torch.cuda.stream(self._stream):
            pinned = _pinned(batch).items()
            copies = {name: tensor.to(self.device, non_blocking=True) for name, tensor in pinned}
        return batch | copies if copies else batch, copies, self._stream.record_event()

    def _hand_over(self, batch: Any, copies: dict[str, Tensor], copied: Any) -> Any:
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(copied)
        for tensor in copies.values():
            tensor.record_stream(stream)  # else the next copy could take its memory too early
        return batch


def _pinned(batch: Any) -> dict[str, Tensor]:
    items = batch.items() if type(batch) is dict else ()
    tensors = {name: value for name, value in items if isinstance(value, Tensor)}
    return {name: t for name, t in tensors.items() if t.layout is torch.strided and t.is_pinned()}
