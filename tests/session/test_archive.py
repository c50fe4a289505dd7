"""A checkpoint is read as it was written, or not at all."""

import io
import pickle
import time
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from lightning_trainer.checkpoints.files import AtomicCheckpointIO
from lightning_trainer.session.archive import seal
from lightning_trainer.session.checkpoint_header import find_fault, read_header

TENSORS = {f"w{n}": torch.full((20 + n,), 1.0 + n) for n in range(6)}
TRAINED = {"global_step": 3, "state_dict": TENSORS}


@pytest.fixture
def path(tmp_path) -> Path:
    AtomicCheckpointIO().save_checkpoint(TRAINED, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def loads_the_same(path: Path) -> bool:
    state = torch.load(path, mmap=True)["state_dict"]
    return all(torch.equal(state[name], tensor) for name, tensor in TENSORS.items())


def passes(content: bytes, path: Path, positions: range) -> list[int]:
    """The positions at which a flipped bit is not seen."""
    passed = []
    for position in positions:
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        if not find_fault(path):
            passed.append(position)
    return passed


def test_a_flipped_bit_is_seen_wherever_it_is(path):
    content = path.read_bytes()
    mark = content.rindex(b"lightning_trainer seal ")
    assert find_fault(path) is None
    passed = passes(content, path, range(0, len(content), 3))
    # Only the word by which the seal is known may differ: what is loaded is the same.
    assert {*passed} <= {*range(mark, mark + 23)}


@pytest.mark.slow
def test_no_flipped_bit_of_ten_thousand_loads_other_values(path):
    content = path.read_bytes()
    n = 0
    for bit in range(8):
        for position in range(bit % 2, len(content), 2):
            n += 1
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            if not find_fault(path):
                assert loads_the_same(path), (position, bit)
    assert n > 10_000


def test_the_seal_travels_with_the_file_and_torch_reads_it(path, tmp_path):
    copy = tmp_path / "b.ckpt"
    copy.write_bytes(path.read_bytes())
    assert find_fault(copy) is None
    assert loads_the_same(copy)
    assert torch.load(copy, weights_only=False)["global_step"] == 3
    with zipfile.ZipFile(copy) as archive:
        assert archive.comment.startswith(b"lightning_trainer seal ")


def test_a_file_without_a_seal_is_read(tmp_path):
    torch.save(TRAINED, tmp_path / "a.ckpt")
    assert find_fault(tmp_path / "a.ckpt") is None
    assert read_header(tmp_path / "a.ckpt")["global_step"] == 3


def test_a_seal_reads_none_of_the_tensors(tmp_path):
    file = io.BytesIO()
    torch.save({"w": torch.zeros(2**20)}, file)
    seen = []

    class Counting(io.BytesIO):
        def read(self, size=-1):
            seen.append(len(data := super().read(size)))
            return data

    seal(Counting(file.getvalue()))
    assert sum(seen) < 2**14


@pytest.mark.parametrize(
    "names", [["a/data.pkl", "a/data.pkl"], ["a/data.pkl", "A/DATA.pkl"], ["a/b", "b/data.pkl"]]
)
def test_a_zip_in_which_torch_might_read_another_pickle_is_refused(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            archive.writestr(name, pickle.dumps(TRAINED["global_step"], 2))
    with pytest.raises(ValueError, match=r"two of its records|no record `data\.pkl`"):
        read_header(tmp_path / "a.ckpt")


def test_a_zip_that_grows_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"}" * 10**8)
    started_s = time.monotonic()
    with pytest.raises(ValueError, match=r"is compressed|overlap"):
        read_header(tmp_path / "a.ckpt")
    assert time.monotonic() - started_s < 1
