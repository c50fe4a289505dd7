"""A pickle's cost is known before anything is made of it, and honest ones pass."""

import pickle
import struct
import time
from collections import OrderedDict

import pytest
import torch

from lightning_trainer.session.checkpoint_header import IN_A_RUN, IN_A_TABLE, read_header
from lightning_trainer.session.pickle_bounds import check_pickle

PLAIN = {
    "a": [1, -1, 2**40, 2.5, None, True, "x", b"b", bytearray(b"c"), 1j],
    "b": {"c": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), 3: {}, (1, "x"): [[]]},
    "d": [{1, 2}, frozenset([1]), OrderedDict(a={"b": OrderedDict()})],
}


def nested(depth: int) -> tuple:
    value: tuple = (1,)
    for _ in range(depth):
        value = (value, value)
    return value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_honest_values_pass_in_each_protocol(protocol):
    shared = [1, 2]
    for value in (PLAIN, [shared] * 3, [PLAIN] * 5, "x" * 10**6, [*range(10**5)]):
        check_pickle(pickle.dumps(value, protocol), 10**6)


def looped() -> list:
    value: list = []
    value.append([value])
    return value


def deep() -> list:
    value: list = []
    for _ in range(400):
        value = [value]
    return value


def parents_first() -> bytes:
    """Lists that hold each other before they are filled."""
    body = b"]q\x00"
    for n in range(1, 40):
        body += b"]q" + bytes([n]) + b"(h" + bytes([n - 1]) + b"h" + bytes([n - 1]) + b"e"
    return b"\x80\x02" + body + b"h\x00K\x01a."


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (pickle.dumps([nested(40)], 2), ValueError),
        (pickle.dumps(looped(), 2), ValueError),
        (pickle.dumps(deep(), 2), ValueError),
        (parents_first(), ValueError),
        (b"\x80\x02)" + b"\x85" * 10**6 + b".", ValueError),
        (b"\x80\x02K\x01r" + struct.pack("<I", 2**31 - 1) + b".", ValueError),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".", ValueError),
        (b"\x80\x02" + b"}" * 10**6 + b".", MemoryError),
        (b"\x80\x02" + b"(" * 10**6 + b".", MemoryError),
        (b"\x80\x02\x8b" + struct.pack("<i", 2**30) + b".", ValueError),
        (b"2" * 100, ValueError),
        (b"t.", ValueError),
        (b"(h\x00.", ValueError),
        (b"K\x01(a.", ValueError),
        (b".", ValueError),
        (b"", ValueError),
    ],
    ids=range(16),
)
def test_what_would_cost_more_than_it_says_is_refused_at_once(data, error):
    started_s = time.monotonic()
    with pytest.raises(error):
        check_pickle(data, 10**5)
    assert time.monotonic() - started_s < 1


def test_any_damage_of_a_pickle_is_an_answer():
    data = pickle.dumps(PLAIN, 2)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 0x55
        for damaged in (bytes(changed), data[:position]):
            try:
                check_pickle(damaged, 1000)
            except (ValueError, MemoryError):
                continue


def test_what_is_too_large_for_a_table_is_read_for_a_run(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"global_step": 3, "state_dict": {}, "x": [*range(300)]}, path)
    small = (IN_A_RUN[0], 100)
    with pytest.raises(ValueError, match="more than 100 parts"):
        read_header(path, small)
    assert read_header(path, IN_A_TABLE) == read_header(path)
    assert read_header(path)["x"][-1] == 299


def test_many_tensors_take_little_time(tmp_path):
    tensors = {f"layers.{n}.weight": torch.empty(2) for n in range(2000)}
    path = tmp_path / "a.ckpt"
    torch.save({"global_step": 3, "state_dict": tensors}, path)
    assert len(read_header(path, IN_A_TABLE)["state_dict"]) == 2000
