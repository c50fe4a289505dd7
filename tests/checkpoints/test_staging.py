"""Checkpoints are copied to the host as they are, whatever training does meanwhile."""

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import UntypedStorage

from lightning_trainer.checkpoints import staging
from lightning_trainer.checkpoints.staging import Staging, copy_to_host
from lightning_trainer.checkpoints.writing import goes_on_meanwhile


class Gpu:
    """The order of what is queued on a GPU, which acts only when something waits for it."""

    def __init__(self) -> None:
        self.queue: list[Callable[[], object]] = []
        self.n_done = 0
        self.n_pinned: list[int] = []  # sizes

    def run(self, n: int) -> None:
        for act in self.queue[self.n_done : n]:
            act()
        self.n_done = max(n, self.n_done)

    def pin(self, n_bytes: int) -> UntypedStorage:
        self.n_pinned.append(n_bytes)
        memory = Pinned(n_bytes)
        memory.gpu = self
        return memory

    def event(self, blocking: bool) -> SimpleNamespace:
        assert blocking
        event = SimpleNamespace(end=0)
        event.record = lambda stream: setattr(event, "end", len(self.queue))
        event.synchronize = lambda: self.run(event.end)
        return event


class Pinned(UntypedStorage):
    """Memory that the fake GPU writes to when it comes to that."""

    def copy_(self, source, non_blocking=False):
        assert non_blocking
        self.gpu.queue.append(lambda: UntypedStorage.copy_(self, source.real))


class OnDevice(torch.Tensor):
    """A tensor that says that it is on a device."""

    kind = "cuda"

    def untyped_storage(self):
        real = self.as_subclass(torch.Tensor).untyped_storage()
        return SimpleNamespace(
            real=real,
            device=torch.device(self.kind, 0),
            nbytes=real.nbytes,
            data_ptr=real.data_ptr,
            cpu=real.clone,
            clone=lambda: pytest.fail("it would still be on the device"),
        )


class OnMps(OnDevice):
    kind = "mps"


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setattr(staging, "pinned_memory", gpu.pin)
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    return gpu


def model(*sizes: int) -> dict:
    """Weights on the fake GPU, two of them tied, and a tensor on the host."""
    weights = [torch.full((n,), float(n)) for n in sizes]
    state = {str(n): w.as_subclass(OnDevice) for n, w in zip(sizes, weights, strict=True)}
    state["tied"] = weights[0].view(1, -1).as_subclass(OnDevice)
    return {"state_dict": state, "step": torch.tensor(3.0)}


def plain(checkpoint: dict) -> dict:
    tensors = {**checkpoint["state_dict"], "step": checkpoint["step"]}
    return {name: value.clone().tolist() for name, value in tensors.items()}


def test_a_copy_is_that_of_its_iteration_though_the_next_one_is_queued_before_it_is_written(gpu):
    checkpoint, written = model(4, 6), []
    expected = plain(checkpoint)
    write = Staging().stage(checkpoint, lambda copied: written.append(plain(copied)))
    for value in checkpoint["state_dict"].values():  # the next iteration
        gpu.queue.append(lambda value=value: value.as_subclass(torch.Tensor).zero_())
    checkpoint["step"].zero_()  # on the host at once
    assert gpu.n_done == 0  # nothing has waited for the GPU
    write()
    assert written == [expected]
    assert gpu.n_done == 2  # the two copies, not the next iteration


def test_pinned_memory_is_used_again_until_the_sizes_change(gpu):
    stage, written = Staging(), []

    def save(checkpoint: dict) -> None:
        gpu.n_pinned.clear()
        expected = plain(checkpoint)
        stage.stage(checkpoint, lambda copied: written.append(plain(copied)))()
        assert written.pop() == expected

    save(model(4, 6))
    assert gpu.n_pinned == [16, 24]
    save(model(4, 6))
    assert gpu.n_pinned == []
    save(model(6, 8))
    assert gpu.n_pinned == [32]
    save(model(4))  # what this one does not need is given back
    assert gpu.n_pinned == [16]
    save(model(4, 6, 8))
    assert gpu.n_pinned == [24, 32]


def test_a_copy_that_is_being_written_is_not_overwritten_by_the_next_one(gpu):
    stage, written = Staging(), []
    first, second = model(4), model(4)
    second["state_dict"]["4"].fill_(5.0)
    expected = [plain(first), plain(second)]
    writes = [stage.stage(c, lambda copied: written.append(plain(copied))) for c in (first, second)]
    for write in writes:
        write()
    assert written == expected


def test_memory_is_used_again_after_a_write_that_failed(gpu):
    stage = Staging()

    def fail(copied: dict) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        stage.stage(model(4), fail)()
    gpu.n_pinned.clear()
    stage.stage(model(4), fail)
    assert gpu.n_pinned == []


def test_where_no_more_memory_can_be_pinned_training_waits_for_the_copy(gpu, monkeypatch):
    def pin(n_bytes: int) -> UntypedStorage:
        if n_bytes > 20:
            tried.append(n_bytes)
            raise RuntimeError("CUDA error: out of memory")
        return gpu.pin(n_bytes)

    tried: list[int] = []
    monkeypatch.setattr(staging, "pinned_memory", pin)
    stage, written, checkpoint = Staging(), [], model(4, 6, 8)
    expected = plain(checkpoint)
    for _ in range(2):
        write = stage.stage(checkpoint, lambda copied: written.append(plain(copied)))
        write()
    assert written == [expected, expected]
    assert tried == [24]  # once


def test_tied_weights_share_their_memory_in_the_copy(gpu):
    copied: list[dict] = []
    Staging().stage(model(4), copied.append)()
    state = copied[0]["state_dict"]
    assert state["tied"].untyped_storage().data_ptr() == state["4"].untyped_storage().data_ptr()


def test_from_another_kind_of_device_the_copy_is_on_the_host_too():
    weight = torch.arange(3.0)
    copied = copy_to_host({"w": weight.as_subclass(OnMps)})
    weight.zero_()
    assert type(copied["w"]) is torch.Tensor
    assert copied["w"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("kind", "expected"), [("cpu", False), ("mps", False), ("cuda", True), ("xpu", True)]
)
def test_training_goes_on_meanwhile_where_the_device_has_memory_of_its_own(kind, expected):
    strategy = SimpleNamespace(root_device=torch.device(kind))
    assert goes_on_meanwhile(SimpleNamespace(strategy=strategy)) is expected


@pytest.mark.gpu
def test_on_a_gpu_a_copy_into_pinned_memory_is_that_of_its_iteration():
    weight = torch.ones(2**24, device="cuda")
    stage, written = Staging(), []
    for n in range(1, 4):
        write = stage.stage({"w": weight}, lambda copied: written.append(copied["w"].clone()))
        weight.add_(1.0)
        write()
        assert torch.equal(written.pop(), torch.full_like(weight, n, device="cpu"))
    [[memory]] = stage._spare.values()
    assert memory.is_pinned()


def test_what_shares_memory_shares_it_in_the_copy():
    weight = torch.arange(12.0).reshape(3, 4)
    state = OrderedDict(a=weight, b=weight.t(), c=weight[1], d=torch.eye(2).to_sparse())
    state._metadata = {"": {"version": 1}}
    checkpoint = {"state_dict": state, "loops": [{"n": 1}], "same": state}
    expected = {name: value.clone() for name, value in state.items()}
    copied = copy_to_host(checkpoint)
    weight.zero_()
    checkpoint["loops"][0]["n"] = 2
    assert copied["loops"] == [{"n": 1}]
    assert copied["same"] is copied["state_dict"]
    assert copied["state_dict"]._metadata == {"": {"version": 1}}
    for name, value in expected.items():
        assert torch.equal(copied["state_dict"][name].to_dense(), value.to_dense())
        assert copied["state_dict"][name].stride() == value.stride() or name in "bd"
    pointers = [copied["state_dict"][name].untyped_storage().data_ptr() for name in "abc"]
    assert len(set(pointers)) == 1
