"""Reads a checkpoint's state and checks it for damage, without torch.

A checkpoint is a zip file of `torch.save`. A sharded one is a folder with such a file, `meta.pt`.
"""

import io
import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_trainer.session.archive import archive_fault, open_archive, read_structure
from lightning_trainer.session.pickle_bounds import check_pickle
from lightning_trainer.session.shards import METADATA, read_metadata

KEY = "lightning_trainer"  # the key of this library's state in a checkpoint
VERSION = 1  # of that state's format

# The modules and functions that `torch.load` with `weights_only` accepts (torch 2.6 to 2.15).
_SAFE_MODULES = (
    *("torch", "torch.cuda", "torch.sparse", "torch.cuda.sparse", "torch.storage"),
    *("torch.serialization", "torch.nn.parameter", "torch._tensor", "torch._utils"),
)
_SAFE = (
    *("collections.OrderedDict", "collections.Counter", "_codecs.encode"),
    *("builtins.set", "builtins.complex", "builtins.bytearray"),
)

# The largest structure that is read: in midst of a table of sessions, and for a run. A model of
# 10,000 tensors with Adam's state takes 3 MB of directory, 4 MB of structure and 1.3 million parts:
# a table shows of its run what run.json says.
IN_A_TABLE, IN_A_RUN = (2**26, 1_000_000), (2**29, 8_000_000)


def read_header(path: Path, most: tuple[int, int] = IN_A_RUN) -> dict[str, Any]:
    """A checkpoint of Lightning with a placeholder for each tensor; executes nothing in it.

    Args:
        path: The file, or the folder of a sharded one.
        most: Bytes and parts of its structure.

    Raises:
        MemoryError: If it has more than what is read `IN_A_TABLE`.
        ValueError: If it is damaged, has no training state, or holds an object of an unsafe class.
            The tensors' data is not checked.
    """
    try:
        header = read_outline(path / "meta.pt" if path.is_dir() else path, most)
        if not isinstance(header, dict):
            raise TypeError("it holds a single object")
        if isinstance(header.get("global_step"), int) and ("state_dict" in header or path.is_dir()):
            return dict(header)
        reason = "it has no training state, only " + ", ".join(map(str, [*header][:5]))
    except MemoryError as ex:
        if most == IN_A_TABLE:
            raise
        reason = str(ex)
    except Exception as ex:  # a damaged archive or pickle raises a dozen kinds
        reason = f"{type(ex).__name__}: {ex}".splitlines()[0]
    raise ValueError(
        f"{path} can't be read as a checkpoint of Lightning (truncated, damaged or foreign): "
        f"{reason}"
    )


def read_outline(path: Path, most: tuple[int, int] = IN_A_RUN) -> Any:
    """What `torch.save` has written, with a placeholder for each tensor; executes nothing in it.

    Raises:
        MemoryError: If its structure has more bytes or parts than `most`.
        pickle.UnpicklingError: If it holds an object of a class that is not loaded.
        Exception: If it is damaged; `zipfile` and `pickle` raise a dozen kinds.
    """
    with open_archive(path, most[0]) as (archive, _):
        pickled = read_structure(archive)
    check_pickle(pickled, most[1])
    return _Structure(io.BytesIO(pickled)).load()


class _Placeholder:
    """Takes the place of a tensor or another object of torch."""

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Structure(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}".replace("__builtin__", "builtins")  # Python 2's name
        is_sharded = module.startswith("torch.distributed.")
        if not (is_sharded or module in _SAFE_MODULES or full_name in _SAFE):
            raise pickle.UnpicklingError(f"it holds `{full_name}`, which is not loaded")
        return OrderedDict if name == "OrderedDict" else _Placeholder

    def persistent_load(self, pid: Any) -> None:
        """Leaves a tensor's data where it is."""


def layer_state(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """This library's state in a checkpoint; empty if another program has written the checkpoint.

    Its keys are `version`, `settings`, `validated` (whether the validation due there has run),
    `best` (None, or `name`, `mode`, `score`, `iteration`), `times`, `losses`, `named_losses`,
    `train_metrics`, `optimiser`, `conditions` (what decides last bits, as checkpoints/conditions.py
    has it) and `loaders` (of each process, where they are a project's own).

    Raises:
        ValueError: If a newer version of this library has written it.
    """
    state = part(checkpoint, KEY)
    version = state.get("version", 0)
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(
            f"the checkpoint's `{KEY}` has version {version}, this program reads up to version "
            f"{VERSION}: install the newer lightning_trainer that has written it"
        )
    return dict(state) if state else _state_of_0_1_0(checkpoint)


def _state_of_0_1_0(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The same state from a checkpoint of version 0.1.0, where each callback had a key."""
    if "session_config" not in checkpoint:
        return {}
    report = part(checkpoint, "callbacks", "ReportEvaluation")
    score, iteration = report.get("best_score"), report.get("best_iteration")
    best = {"name": None, "mode": None, "score": score, "iteration": iteration}
    return {
        "version": VERSION,
        "settings": checkpoint["session_config"],
        "validated": part(checkpoint, "callbacks", "ValidationSchedule").get("validated", True),
        "best": None if score is None else best,
        "times": part(checkpoint, "callbacks", "PrintProgress", "times"),
        "losses": checkpoint.get("losses"),
        "train_metrics": checkpoint.get("train_metrics"),
        "optimiser": part(checkpoint, "callbacks", "ApplyChangedSettings"),
    }


def part(mapping: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The mapping at a path of keys; empty if there is none."""
    for key in keys:
        value = mapping.get(key)
        mapping = value if isinstance(value, Mapping) else {}
    return mapping


def progress(header: Mapping[str, Any]) -> tuple[int, bool]:
    """Iterations done, and whether the validation due there has run; raises as `layer_state`."""
    return header["global_step"], layer_state(header).get("validated", True)


def reach(path: Path) -> tuple[int, bool] | str:
    """A checkpoint's `progress`, or the reason why it can't be read; raises as `layer_state`."""
    try:
        header = read_header(path)
    except ValueError:
        return find_fault(path) or "is no checkpoint of Lightning"
    return progress(header)


def find_fault(path: str | os.PathLike[str]) -> str | None:
    """The damage of a checkpoint, or None if it is whole.

    Reads the whole file (about 1 GB/s), because each record has a checksum. Of a sharded checkpoint
    it reads the metadata only: each process checks the tensors that it loads.
    """
    path, beside = Path(path), b""
    try:
        if path.is_dir():
            if not path.joinpath("meta.pt").exists():  # it is written last
                return "was not written to its end"
            beside = read_metadata(path) if path.joinpath(METADATA).exists() else b""
            path /= "meta.pt"
        if path.is_file() and path.stat().st_size == 0:
            return "is empty"
        with open_archive(path, IN_A_RUN[0]) as (archive, file):
            return archive_fault(archive, file, beside)
    except pickle.UnpicklingError as ex:
        return f"is not loaded: {ex}"
    except PermissionError:
        return "can't be read: permission denied"
    except Exception:  # a damaged archive makes `zipfile` raise a dozen kinds
        return "is truncated, damaged or no checkpoint"
