"""Nothing in a checkpoint is executed, whatever torch and Lightning ask for."""

import os
import pickle
import shutil
import warnings

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning.fabric.utilities.load import _lazy_load

from lightning_trainer.internals_of_loading import load_safely, only_plain_values
from lightning_trainer.session.checkpoint_header import find_fault
from lightning_trainer.session.shards import read_metadata


class Executed:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """A sharded checkpoint of a tensor and some numbers."""
    monkeypatch.chdir(tmp_path)
    save({"a": torch.arange(6.0), "group": {"lr": 0.5, "betas": (0.9, 0.99)}})
    torch.save({"global_step": 3}, "shards/meta.pt")
    return tmp_path / "shards"


def save(state: dict) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id="shards")


def load(folder) -> dict:
    state = {"a": torch.zeros(6), "group": {"lr": 0.0, "betas": None}}
    with warnings.catch_warnings(), only_plain_values():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=folder)
    return state


def test_an_honest_sharded_checkpoint_is_loaded(shards):
    assert find_fault(shards) is None
    state = load(shards)
    assert state["a"].tolist() == [0, 1, 2, 3, 4, 5]
    assert state["group"] == {"lr": 0.5, "betas": (0.9, 0.99)}


def test_without_the_guard_torch_executes_what_metadata_and_numbers_name(shards):
    (shards / ".metadata").write_bytes(pickle.dumps(Executed()))
    with pytest.raises(dcp.CheckpointException), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load({"a": torch.zeros(6)}, checkpoint_id=shards)
    assert os.path.exists("executed")


@pytest.mark.parametrize("name", [".metadata", "__0.metadata"])
def test_metadata_with_code_is_not_executed(shards, name):
    (shards / ".metadata").unlink()
    (shards / name).write_bytes(pickle.dumps(Executed()))
    if name == ".metadata":
        assert find_fault(shards) == "is not loaded: it holds `posix.mkdir`, which is not loaded"
    with pytest.raises(dcp.CheckpointException, match="which is not loaded"):
        load(shards)
    assert not os.path.exists("executed")


def test_a_number_with_code_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save({"a": torch.zeros(6), "group": {"lr": Executed(), "betas": None}})
    with pytest.raises(dcp.CheckpointException, match=r"posix\.mkdir"):
        load(tmp_path / "shards")
    assert not os.path.exists("executed")


def test_a_whole_checkpoint_with_code_is_not_executed_by_fsdp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.ones(2)}, "evil": Executed()}, "a.ckpt")
    with only_plain_values(), pytest.raises(pickle.UnpicklingError, match=r"posix\.mkdir"):
        _lazy_load("a.ckpt")
    assert not os.path.exists("executed")
    torch.save({"state_dict": {"a": torch.ones(2)}, "n": {"lr": 1e-3}}, "b.ckpt")
    with only_plain_values():
        assert _lazy_load("b.ckpt")["n"] == {"lr": 1e-3}


def test_whoever_loads_within_it_gets_plain_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Executed(), "a.ckpt")
    with only_plain_values(), pytest.raises(pickle.UnpicklingError):
        torch.load("a.ckpt", weights_only=False)
    assert not os.path.exists("executed")


@pytest.mark.parametrize("path", ["../a", "/dev/zero", "sub/__0_0.distcp", "link", "", ".."])
def test_metadata_that_names_a_file_elsewhere_is_refused(shards, path):
    (shards / "link").symlink_to("/dev/zero")
    metadata = pickle.loads((shards / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = path
    (shards / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match=r"does not lie beside it|more of link than there is"):
        read_metadata(shards)


def test_a_flipped_bit_in_a_shard_is_seen_where_it_is_read(shards):
    content = (shards / "__0_0.distcp").read_bytes()
    wrong = []
    for position in range(0, len(content), 41):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        (shards / "__0_0.distcp").write_bytes(flipped)
        try:
            state = load(shards)
        except (Exception, dcp.CheckpointException):
            continue
        if state["a"].tolist() != [0, 1, 2, 3, 4, 5] or state["group"]["lr"] != 0.5:
            wrong.append(position)
    assert not wrong


def test_a_flipped_bit_in_sealed_metadata_is_seen(shards):
    from lightning_trainer.checkpoints.names import publish

    publish(shards, shards.with_name("last.ckpt"))
    assert find_fault(shards) is None
    content = (shards / ".metadata").read_bytes()
    for position in range(0, len(content), 29):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        (shards / ".metadata").write_bytes(flipped)
        assert find_fault(shards), position
    shutil.rmtree(shards)


def test_what_torch_can_not_read_is_one_line(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"global_step": 3}, path)
    path.write_bytes(path.read_bytes()[:-9])
    trainer = pl.Trainer(logger=False, accelerator="cpu", devices=1)
    undo = load_safely(trainer)
    with pytest.raises(ValueError, match=r"a\.ckpt can't be loaded: PytorchStreamReader"):
        trainer.strategy.load_checkpoint(path)
    torch.save(Executed(), path)
    with pytest.raises(ValueError, match=r"a\.ckpt can't be loaded: Weights only load failed"):
        trainer.strategy.load_checkpoint(path, weights_only=False)
    with pytest.raises(ValueError, match=r"is a sharded checkpoint, which `trainer\.strategy`"):
        trainer.strategy.load_checkpoint(tmp_path)
    undo()
    assert "load_checkpoint" not in vars(trainer.strategy)
