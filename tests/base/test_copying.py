"""CopyAhead, with streams that only note what they are asked for."""

import contextlib
import weakref
from itertools import chain
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from conftest import TinyData, TinyModule
from torch import Tensor

from lightning_trainer.base import copying
from lightning_trainer.base.copying import CopyAhead
from lightning_trainer.base.data import SessionLoader

CPU = torch.device("cpu")


class FakeStreams:
    """Stands in for the GPU's streams, events and copies, and notes their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.current = "step"
        self.n_streams = self.n_events = 0
        for name, fake in (("Stream", self.new_stream), ("stream", self.use)):
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self.stream(self.current))
        monkeypatch.setattr(Tensor, "is_pinned", lambda tensor: True)
        to = Tensor.to

        def keep(tensor: Tensor, stream: Any) -> None:
            self.events.append(f"keep {name_of(tensor)} for {stream.name}")

        def copy(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if kwargs.get("non_blocking") and self.current == "side":
                self.events.append(f"copy {name_of(tensor)}")
                return tensor.clone()
            return to(tensor, *args, **kwargs)

        monkeypatch.setattr(Tensor, "to", copy)
        monkeypatch.setattr(Tensor, "record_stream", keep)

    def stream(self, name: str) -> Any:
        def record_event() -> str:
            self.n_events += 1
            return f"event {self.n_events - 1}"

        return SimpleNamespace(
            name=name,
            record_event=record_event,
            wait_event=lambda event: self.events.append(f"{name} waits for {event}"),
        )

    def new_stream(self, device: torch.device) -> Any:
        self.n_streams += 1
        return self.stream("side")

    @contextlib.contextmanager
    def use(self, stream: Any):
        self.current, before = stream.name, self.current
        yield
        self.current = before

    def source(self, n: int):
        """`n` batches, each a number."""
        for i in range(n):
            self.events.append(f"fetch {i}")
            yield {"x": torch.full((2,), float(i)), "name": str(i)}


def name_of(tensor: Tensor) -> int:
    return int(tensor.flatten()[0])


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> FakeStreams:
    monkeypatch.setattr(copying, "_LEAST_BYTES", 1)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    return FakeStreams(monkeypatch)


def steps(streams: FakeStreams, n_ahead: int, n: int = 3) -> list[str]:
    """The order of events in an epoch."""
    for batch in CopyAhead(CPU, n_ahead)(streams.source(n)):
        streams.events.append(f"step {name_of(batch['x'])} {batch['name']}")
    return streams.events


def hand_over(i: int) -> list[str]:
    return [f"step waits for event {i}", f"keep {i} for step", f"step {i} {i}"]


def test_the_next_batch_is_being_copied_when_a_batch_is_handed_out(streams):
    assert steps(streams, n_ahead=1) == [
        *("fetch 0", "copy 0", "fetch 1", "copy 1"),
        *hand_over(0),
        *("fetch 2", "copy 2"),
        *hand_over(1),
        *hand_over(2),
    ]


def test_with_none_ahead_a_batch_is_fetched_when_it_is_asked_for(streams):
    expected = [[f"fetch {i}", f"copy {i}", *hand_over(i)] for i in range(3)]
    assert steps(streams, n_ahead=0) == [*chain(*expected)]


@pytest.mark.parametrize("n_ahead", [0, 1])
@pytest.mark.parametrize("n", [0, 1, 2])
def test_short_epochs_are_whole(streams, n_ahead, n):
    events = steps(streams, n_ahead, n)
    assert [event for event in events if event.startswith("step ") and "waits" not in event] == [
        f"step {i} {i}" for i in range(n)
    ]


def test_all_epochs_share_one_stream(streams):
    copy_ahead = CopyAhead(CPU, 1)
    for _ in range(3):
        assert len([*copy_ahead(streams.source(2))]) == 2
    assert streams.n_streams == 1


def test_small_batches_are_left_to_lightning(streams, monkeypatch):
    monkeypatch.setattr(copying, "_LEAST_BYTES", 9)  # a batch has two floats
    assert steps(streams, n_ahead=1) == [
        *chain(*([f"fetch {i}", f"step {i} {i}"] for i in range(3)))
    ]
    assert streams.n_streams == 0


@pytest.mark.parametrize("least_bytes", [1, 9])
def test_no_batch_is_kept_while_the_next_one_is_fetched(streams, monkeypatch, least_bytes):
    monkeypatch.setattr(copying, "_LEAST_BYTES", least_bytes)
    newest: list[Any] = []

    def source():
        for i in range(4):
            assert not [tensor for tensor in newest if tensor() is not None]
            x = torch.full((2,), float(i))
            newest[:] = [weakref.ref(x)]
            batch = {"x": x}
            del x
            yield batch
            del batch

    for batch in CopyAhead(CPU, 0)(source()):
        del batch


def test_what_is_not_a_pinned_tensor_of_a_dict_is_left_to_lightning(streams, monkeypatch):
    batches = [[torch.zeros(2)], {"a": torch.zeros(2), "b": [torch.zeros(2)], "c": 1}]
    monkeypatch.setattr(Tensor, "is_pinned", lambda tensor: len(tensor) == 3)
    batches.append({"a": torch.zeros(3).to_sparse(), "b": torch.zeros(2)})
    for batch in batches:
        [same] = CopyAhead(CPU, 1)(iter([batch]))
        assert same is batch
    first = {"a": torch.ones(3), "b": torch.zeros(2)}
    copied, other = CopyAhead(CPU, 1)(iter([first, batches[0]]))
    assert copied["a"] is not first["a"] and copied["b"] is first["b"]
    assert [*copied] == ["a", "b"] and other is batches[0]


# In a loader --------------------------------------------------------------------------------------


def loader_of(n_workers: int, n_ahead: int | None) -> SessionLoader:
    data = TinyData(n_workers=n_workers)
    data.setup("fit")
    loader = data.train_dataloader()
    loader.copy_ahead = None if n_ahead is None else CopyAhead(CPU, n_ahead)
    return loader


def epochs(loader: SessionLoader, lengths: tuple[int, ...]) -> list[Any]:
    """Each batch with the state after it, of epochs that break off after so many batches."""
    seen = []
    for length in lengths:
        for i, batch in enumerate(loader, start=1):
            seen.append(({k: v.tolist() for k, v in batch.items()}, loader.state_dict()))
            if i == length:
                break
    return seen


@pytest.mark.parametrize(("n_workers", "n_ahead"), [(0, 0), (0, 1), (2, 1)])
def test_batches_and_states_are_those_of_the_plain_loader(streams, n_workers, n_ahead):
    lengths = (99, 3, 2, 99)
    plain, copied = loader_of(0, None), loader_of(n_workers, n_ahead)
    assert epochs(copied, lengths) == epochs(plain, lengths)
    assert streams.n_streams == 1
    goes_on = loader_of(n_workers, n_ahead)
    goes_on.load_state_dict({"samples": 8})
    assert epochs(goes_on, (99, 99)) == epochs(loader_of(0, None), (99, 99, 99))[2:14]


class CopiedData(TinyData):
    """With `n_workers` 0, but one batch ahead: the harder case."""

    def train_dataloader(self) -> SessionLoader:
        loader = super().train_dataloader()
        loader.copy_ahead = CopyAhead(CPU, 1)
        return loader


def trained(data: TinyData, path: Any, n_steps: int, **kwargs: Any) -> dict[str, Tensor]:
    """The weights after so many steps, which are saved as well."""
    pl.seed_everything(7, verbose=False)
    module = TinyModule()
    module.configure_model()
    trainer = pl.Trainer(
        max_steps=n_steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    module.model[2].p = 0.0  # dropout would draw from what the fetch has left
    trainer.fit(module, datamodule=data, **kwargs)
    trainer.save_checkpoint(path)
    return module.state_dict()


def test_training_and_going_on_are_bitwise_those_of_the_plain_loader(streams, tmp_path):
    plain = trained(TinyData(), tmp_path / "plain.ckpt", 11)
    for n_done in (3, 6, 7):
        part = tmp_path / f"{n_done}.ckpt"
        trained(CopiedData(), part, n_done)
        whole = trained(CopiedData(), tmp_path / "whole.ckpt", 11, ckpt_path=part)
        assert all(torch.equal(plain[name], whole[name]) for name in plain)
    assert streams.n_streams == 6


# Where it is used ---------------------------------------------------------------------------------


class MovesItself(TinyData):
    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        return batch


class LooksBefore(TinyModule):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


class Augments(TinyModule):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


def on(device: str, data: TinyData, module: TinyModule) -> TinyData:
    """The data with what it asks of a trainer on this device."""
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)),
        lightning_module=module,
        distributed_sampler_kwargs=None,
        overfit_batches=0,
    )
    return data


@pytest.mark.parametrize(("n_workers", "n_ahead"), [(0, 0), (1, 1), (2, 1)])
def test_on_a_gpu_the_training_loader_copies_ahead_of_what_workers_have_fetched(n_workers, n_ahead):
    data = on("cuda:0", TinyData(n_workers=n_workers), Augments())
    copy_ahead = data.train_dataloader().copy_ahead
    assert (copy_ahead.device, copy_ahead.n_ahead) == (torch.device("cuda:0"), n_ahead)


@pytest.mark.parametrize(
    ("device", "data", "module"),
    [
        ("cpu", TinyData(), TinyModule()),
        ("mps", TinyData(), TinyModule()),
        ("cuda", MovesItself(), TinyModule()),
        ("cuda", TinyData(), LooksBefore()),
    ],
)
def test_elsewhere_and_where_a_project_moves_batches_itself_nothing_is_copied_ahead(
    device, data, module
):
    assert on(device, data, module).train_dataloader().copy_ahead is None


@pytest.mark.gpu
@pytest.mark.parametrize("n_ahead", [0, 1])
def test_on_a_gpu_no_batch_is_overwritten_while_a_late_step_reads_it(n_ahead):
    device, work = torch.device("cuda"), torch.rand(4096, 4096, device="cuda")
    source = ({"x": torch.full((2**22,), float(i)).pin_memory()} for i in range(12))
    sums = []
    for batch in CopyAhead(device, n_ahead)(source):
        for _ in range(20):  # the step begins long after the host has let go of the batch
            work = torch.tanh(work @ work)
        sums.append(batch["x"].sum(dtype=torch.float64))
        del batch
    assert [total.item() for total in sums] == [2.0**22 * i for i in range(12)]
