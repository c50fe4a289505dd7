"""Copies checkpoints to the host, so that training goes on while they are written."""

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import UntypedStorage


class Staging:
    """Copies checkpoints from a GPU without waiting for it, into pinned memory that is kept.

    The GPU copies after the iteration that the checkpoint is of, and before all that is queued
    later: training may go on at once. The thread that writes waits for the copy.

    Memory that the next checkpoint does not need is given back to torch. Where no memory can be
    pinned, and on any other device, training waits for the copy.
    """

    def __init__(self) -> None:
        self._spare: dict[int, list[UntypedStorage]] = {}  # by size, of the newest file written
        self._pins = True

    def stage(
        self, checkpoint: dict[str, Any], write: Callable[[dict[str, Any]], None]
    ) -> Callable[[], None]:
        """Copies `checkpoint`; returns a function, for any thread, that writes the copy."""
        spare, self._spare = self._spare, {}
        used: dict[int, list[UntypedStorage]] = defaultdict(list)
        devices: set[torch.device] = set()

        def to_host(storage: UntypedStorage) -> UntypedStorage:
            n_bytes = storage.nbytes()
            memory = None
            if storage.device.type == "cuda" and n_bytes:
                memory = spare[n_bytes].pop() if spare.get(n_bytes) else self._pin(n_bytes)
            if memory is None:
                return _copy_and_wait(storage)
            memory.copy_(storage, non_blocking=True)
            used[n_bytes].append(memory)
            devices.add(storage.device)
            return memory

        copied = copy_to_host(checkpoint, to_host)
        copies = [(device, _mark(device)) for device in devices]

        def finish() -> None:
            for device, end in copies:
                with torch.cuda.device(device):  # a thread would begin to use GPU 0
                    end.synchronize()
            try:
                write(copied)
            finally:
                self._spare = used

        return finish

    def _pin(self, n_bytes: int) -> UntypedStorage | None:
        if self._pins:
            try:
                return pinned_memory(n_bytes)
            except RuntimeError:  # no more can be pinned; an error of the GPU itself comes again
                self._pins = False
        return None


def pinned_memory(n_bytes: int) -> UntypedStorage:
    """Memory of the host that a GPU can write to by itself.

    Raises:
        RuntimeError: If there is none left.
    """
    return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True).untyped_storage()


def _mark(device: torch.device) -> torch.cuda.Event:
    """An event at the end of what is queued; waiting for it leaves the processor to others."""
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _copy_and_wait(storage: UntypedStorage) -> UntypedStorage:
    on_host = storage.device.type == "cpu"
    copied: UntypedStorage = storage.clone() if on_host else storage.cpu()
    return copied


def copy_to_host(
    checkpoint: dict[str, Any],
    to_host: Callable[[UntypedStorage], UntypedStorage] = _copy_and_wait,
) -> dict[str, Any]:
    """A copy that training does not change, with all tensors in the host's memory.

    Tensors that share memory, as tied weights do, share it in the copy.
    """
    storages: dict[tuple[torch.device, int], UntypedStorage] = {}
    copies: dict[int, Any] = {}

    def copy_tensors(value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.layout is not torch.strided:
            copies[id(value)] = value.detach().cpu().clone()
        elif isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            at = storage.device, storage.data_ptr()
            if at not in storages:
                storages[at] = to_host(storage)
            host = torch.empty(0, dtype=value.dtype)
            host.set_(storages[at], value.storage_offset(), value.shape, value.stride())
            copies[id(value)] = host
        elif isinstance(value, dict | list | tuple | set):
            for item in value.values() if isinstance(value, dict) else value:
                copy_tensors(item)

    copy_tensors(checkpoint)
    return copy.deepcopy(checkpoint, copies)
