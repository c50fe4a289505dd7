import contextlib
import json
import re
import subprocess
import sys

import hostile
import pytest
import torch
from safetensors.torch import save_file

from lightning_trainer.checkpoints.weights import find_weights, read_weights

WEIGHTS = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.ones(2)}


def read(path):
    files, _ = find_weights(str(path))
    return read_weights(files)


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "epoch": 3, "optimizer_states": [{"state": {0: torch.ones(2)}}]},
        {"model": WEIGHTS, "optimizer": {"momentum": torch.ones(2)}, "step": 4},
        {"net": WEIGHTS, "epoch": 3},
        {"ema": {"decay": torch.tensor(0.9)}, "model_state_dict": WEIGHTS},
    ],
    ids=["plain", "Lightning's", "model beside optimiser", "one part", "model_state_dict"],
)
def test_the_weights_are_found_in_what_a_file_holds(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    found = read(tmp_path / "w.pt")
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


def test_a_hubs_folder_is_read_in_each_of_its_forms(tmp_path):
    first, second = ({name: WEIGHTS[name]} for name in WEIGHTS)
    for name in ("one", "bin", "parts"):
        tmp_path.joinpath(name).mkdir()
    save_file(WEIGHTS, tmp_path / "one/model.safetensors")
    torch.save(WEIGHTS, tmp_path / "bin/pytorch_model.bin")
    save_file(first, tmp_path / "parts/a.safetensors")
    save_file(second, tmp_path / "parts/b.safetensors")
    index = {"weight_map": {"0.weight": "a.safetensors", "0.bias": "b.safetensors"}}
    tmp_path.joinpath("parts/model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("one", "bin", "parts"):
        found = read(tmp_path / name)
        assert all(torch.equal(found[key], WEIGHTS[key]) for key in WEIGHTS), name


def test_a_session_stands_for_its_best_checkpoint_else_its_last(half):
    best, last = (half / f"checkpoints/{name}.ckpt" for name in ("best", "last"))
    assert find_weights(str(half)) == ([best], [])
    best.write_bytes(best.read_bytes()[:-100])
    files, lines = find_weights(str(half))
    assert files == [last]
    assert len(lines) == 1 and "best.ckpt" in lines[0] and "passed over" in lines[0]


class Net(torch.nn.Linear):
    pass


@pytest.mark.parametrize("kind", ["class", "old", "text", "empty", "cut", "safetensors"])
def test_a_file_that_cant_be_used_is_refused_in_one_line(tmp_path, kind):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "class":
        torch.save(Net(2, 2), path)
    elif kind in ("old", "cut"):
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=kind != "old")
        path.write_bytes(path.read_bytes()[:-50])
    else:
        path.write_text("" if kind == "empty" else "hello, this is no file of weights")
    with pytest.raises(ValueError, match="`init_from` is ") as found:
        find_weights(str(path))
    assert "\n" not in str(found.value)
    wanted = {
        "class": "Net`, which is not loaded: load it where it was made, and save",
        "old": "is no file of `torch.save` (1.6 or newer)",
        "safetensors": "no safetensors",
    }
    assert wanted.get(kind, "w.pt") in str(found.value)


OF_CHECKPOINTS = ("checkpoint", "pickle", "zip", "pipe", "link", "size", "random")


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [name for name in hostile.FAMILIES if any(word in name for word in OF_CHECKPOINTS)]
)
def test_nothing_in_weights_from_elsewhere_is_executed(first_half, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        session = hostile.make(name, number, first_half, tmp_path)
        for path in (session, *session.glob("checkpoints/*")):
            with contextlib.suppress(OSError, ValueError):
                read(path)
            assert not hostile.EXECUTED.exists()


@pytest.mark.parametrize(
    "names",
    [["../secret.bin"], ["a/b.bin"], [3], [], None],
    ids=["up", "deep", "no text", "none", "no map"],
)
def test_an_index_names_files_beside_it_alone(tmp_path, names):
    torch.save(WEIGHTS, tmp_path / "secret.bin")
    folder = tmp_path / "hub"
    folder.mkdir()
    content = None if names is None else {"weight_map": dict(enumerate(names))}
    folder.joinpath("pytorch_model.bin.index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is no index of a hub's model"):
        find_weights(str(folder))


def test_a_folder_without_weights_and_a_sharded_checkpoint_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="which is no session folder and has none of"):
        find_weights(str(tmp_path))
    tmp_path.joinpath("meta.pt").touch()
    with pytest.raises(ValueError, match="is a sharded checkpoint: make one file of it by"):
        find_weights(str(tmp_path))


def test_a_missing_safetensors_is_named_with_its_command(tmp_path, monkeypatch):
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match=r"needs a package to be read: `pip install .*\[weights\]"):
        find_weights(str(tmp_path / "w.safetensors"))


@pytest.mark.slow
def test_the_command_makes_one_file_of_a_sharded_checkpoint(tmp_path):
    from torch.distributed.checkpoint import save

    save({"state_dict": WEIGHTS}, checkpoint_id=tmp_path / "sharded", no_dist=True)
    with pytest.raises(ValueError, match="sharded") as found:
        find_weights(str(tmp_path / "sharded"))
    [command] = re.findall("`(python -m .*)`", str(found.value))
    subprocess.run([sys.executable, *command.split()[1:]], cwd=tmp_path, check=True)
    assert all(torch.equal(read(tmp_path / "weights.pt")[n], WEIGHTS[n]) for n in WEIGHTS)
