"""What a checkpoint says of itself is read without torch, and damage is found."""

import io
import os
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._weights_only_unpickler import _get_allowed_globals

from lightning_trainer.session.checkpoint_header import (
    KEY,
    _Structure,
    find_fault,
    layer_state,
    reach,
    read_header,
)

TRAINED = {"global_step": 3, "state_dict": {"w": torch.full((200,), 1.0)}}


def save(path: Path, content: object = TRAINED, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


def test_a_file_cut_anywhere_is_not_whole(tmp_path):
    path = save(tmp_path / "a.ckpt")
    content = path.read_bytes()
    assert find_fault(path) is None
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        assert find_fault(path), f"{length} of {len(content)} bytes"


def test_a_bit_flipped_anywhere_is_seen_or_harmless(tmp_path):
    path = save(tmp_path / "a.ckpt")
    content, wrong = path.read_bytes(), []
    for position in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            if not find_fault(path) and read_header(path):
                assert torch.equal(torch.load(path)["state_dict"]["w"], torch.full((200,), 1.0))
        except ValueError as ex:
            assert "can't be read as a checkpoint" in str(ex)
        except Exception as ex:
            wrong.append(f"byte {position}: {type(ex).__name__}: {str(ex)[:60]}")
    assert not wrong, "\n".join([f"{len(wrong)} positions, e.g.", *wrong[:10]])


def test_a_sharded_checkpoint_is_whole_once_its_metadata_is_there(tmp_path):
    folder = tmp_path / "last.ckpt"
    folder.mkdir()
    assert find_fault(folder) == "was not written to its end"
    save(folder / "meta.pt", {"global_step": 3})
    assert find_fault(folder) is None


@pytest.mark.parametrize("text", ["", "hello", None])
def test_what_is_no_zip_file_is_not_whole(tmp_path, text):
    path = tmp_path / "a.ckpt"
    if text is not None:
        path.write_text(text)
    assert find_fault(path)


# Its header ---------------------------------------------------------------------------------------


def test_all_that_is_no_tensor_is_read(tmp_path):
    plain = {"a": [1, 2.5, None, True, "x", (1, 2)], "b": OrderedDict(c={"d": -1}), 3: {}}
    others = {
        "s": {1, 2},
        "n": Counter("aab"),
        "z": [1j, b"b", bytearray(b"b")],
        "t": torch.float16,
        "d": torch.device("cpu"),
    }
    tensors = [torch.ones(2), torch.nn.Parameter(torch.ones(2)), torch.ones(2).to_sparse()]
    path = save(tmp_path / "a.ckpt", {**TRAINED, "plain": plain, "others": others, "x": tensors})
    assert read_header(path)["plain"] == plain


def test_a_header_says_the_same_as_torch_for_what_a_run_leaves(run, config, sessions):
    assert run("fit", "--config", config, "--trainer.max_steps=7")[0] == 0
    for name in ("best", "last"):
        path = sessions()[0] / f"checkpoints/{name}.ckpt"
        checkpoint, header = torch.load(path), read_header(path)
        assert checkpoint.keys() == header.keys()
        for key in ("global_step", "hyper_parameters", "lr_schedulers"):
            assert header[key] == checkpoint[key]
        assert layer_state(header)["settings"] == layer_state(checkpoint)["settings"]
        assert reach(path) == (7 if name == "last" else checkpoint["global_step"], True)


def test_the_header_of_a_sharded_checkpoint_is_in_its_meta_pt(tmp_path):
    save(tmp_path / "meta.pt", {"global_step": 3})
    assert read_header(tmp_path) == {"global_step": 3}


class Executed:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"layer.weight": torch.ones(2)}, "it has no training state, only layer.weight"),
        ({"state_dict": {}}, "it has no training state, only state_dict"),
        ({"global_step": 3, "optimizer_states": []}, "it has no training state, only global_step"),
        ({**TRAINED, "global_step": torch.tensor(3)}, "it has no training state, only global_step"),
        (torch.ones(2), "TypeError: it holds a single object"),
        ({**TRAINED, "evil": Executed()}, "UnpicklingError: it holds `posix.mkdir`, which is not"),
        ({**TRAINED, "m": torch.nn.ReLU()}, "it holds `torch.nn.modules.activation.ReLU`, which"),
        ({**TRAINED, "a": np.ones(2)}, "it holds `numpy."),
    ],
)
def test_what_lightning_could_not_go_on_from_is_refused(tmp_path, monkeypatch, content, reason):
    monkeypatch.chdir(tmp_path)
    path = save(Path("a.ckpt"), content)
    with pytest.raises(ValueError) as caught:
        read_header(path)
    said, _, why = str(caught.value).partition(": ")
    assert said == (
        "a.ckpt can't be read as a checkpoint of Lightning (truncated, damaged or foreign)"
    )
    assert reason in why
    assert not Path("executed").exists()
    assert reach(path) == "is no checkpoint of Lightning"


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "not a zip file", "folder"])
def test_what_is_no_file_of_torch_is_refused(tmp_path, kind):
    path = tmp_path / "a.ckpt"
    if kind == "folder":
        path.mkdir()
    elif kind == "not a zip file":
        save(path, TRAINED, _use_new_zipfile_serialization=False)
    elif kind != "missing":
        path.write_text("hello" * (kind == "text"))
    with pytest.raises(ValueError, match="can't be read as a checkpoint of Lightning"):
        read_header(path)
    assert isinstance(reach(path), str)


def test_all_that_torch_loads_safely_is_known():
    structure = _Structure(io.BytesIO())
    for name in _get_allowed_globals():
        structure.find_class(*name.rsplit(".", 1))


# The library's own state --------------------------------------------------------------------------


def test_the_state_is_under_one_key_and_empty_in_a_foreign_checkpoint():
    state = {"version": 1, "settings": {"tag": "a"}, "validated": False}
    assert layer_state({**TRAINED, KEY: state}) == state
    assert layer_state({**TRAINED, "callbacks": {"EarlyStopping": {}}}) == {}
    assert layer_state({**TRAINED, KEY: 3}) == {}


def test_a_checkpoint_of_0_1_0_has_the_same_state():
    settings, times = {"tag": "a"}, {"elapsed_s": 1.0}
    callbacks = {
        "ValidationSchedule": {"validated": False},
        "ReportEvaluation": {"best_score": 0.5, "best_iteration": 2},
        "PrintProgress": {"times": times},
        "ApplyChangedSettings": {"kind": "Adam"},
    }
    old = {**TRAINED, "session_config": settings, "callbacks": callbacks}
    assert layer_state({**old, "losses": [(0.5, 1)], "train_metrics": [{}]}) == {
        "version": 1,
        "settings": settings,
        "validated": False,
        "best": {"name": None, "mode": None, "score": 0.5, "iteration": 2},
        "times": times,
        "losses": [(0.5, 1)],
        "train_metrics": [{}],
        "optimiser": {"kind": "Adam"},
    }
    without_score = layer_state({"session_config": settings, "callbacks": {}})
    assert (without_score["best"], without_score["validated"]) == (None, True)


@pytest.mark.parametrize("version", [2, "x"])
def test_the_state_of_a_newer_version_is_refused_and_both_are_named(tmp_path, version):
    path = save(tmp_path / "a.ckpt", {**TRAINED, KEY: {"version": version}})
    with pytest.raises(ValueError, match=rf"has version {version}, .* up to version 1: install"):
        reach(path)
