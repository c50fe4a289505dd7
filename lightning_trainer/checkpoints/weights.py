"""Finds and reads the weights that `--init_from` names: a session's, a file's, a hub's model."""

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_trainer.checkpoints.files import AtomicCheckpointIO
from lightning_trainer.checkpoints.restart import Restart
from lightning_trainer.session.checkpoint_header import find_fault, read_outline
from lightning_trainer.session.door import open_file, read_bounded
from lightning_trainer.session.extras import install_command
from lightning_trainer.session.folder import Session

# What `save_pretrained` of a hub's libraries writes; an index names the files of a large model.
_OF_HUBS = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors")
_MOST_BYTES_OF_INDEX = 2**24
_NAMES = ("state_dict", "model_state_dict", "model")  # of the weights, where a file has more
_ANEW = "load it where it was made, and save `model.state_dict()` by `torch.save`"


def check_init_from(path: str, restart: Restart | None) -> None:
    """Looks at the weights before a session folder is made.

    Raises:
        FileNotFoundError: If there are none at the path.
        ValueError: If a file there can't be used, or a checkpoint brings other weights.
    """
    if restart is None:
        find_weights(path)
    elif path not in (restart.stored.get("init_from"), restart.config.get("init_from")):
        raise ValueError(
            f"`init_from` is {path!r}, but `--ckpt_path` brings all weights with it "
            f"({restart.checkpoint}): leave one of the two out"
        )


def find_weights(path: str) -> tuple[list[Path], list[str]]:
    """The files that hold the weights of a path, and lines on checkpoints that can't be used.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If one can't be used, with the remedy.
    """
    target, lines = Path(path), list[str]()
    if not (path and target.exists()):
        raise FileNotFoundError(
            f"`init_from` is {path!r}: there is no such session folder or file of weights. A hub's "
            "model has to lie on this disk"
        )
    if target.is_dir() and not _is_sharded(target):
        if session := Session.around(target):
            target, lines = session.find_checkpoint(best=True)
        else:
            files = _of_hub(target)
            for file in files:
                _check(file, path)
            return files, lines
    _check(target, path)
    return [target], lines


def read_weights(files: list[Path]) -> dict[str, Tensor]:
    """The tensors by name; executes nothing in the files."""
    weights: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights |= load_file(file)
        else:
            weights |= dict(_tensors(AtomicCheckpointIO().load_checkpoint(file)))
    return weights


def _is_sharded(folder: Path) -> bool:
    return any(folder.joinpath(name).exists() for name in ("meta.pt", ".metadata"))


def _of_hub(folder: Path) -> list[Path]:
    for name in _OF_HUBS:
        index = folder / f"{name}.index.json"
        if folder.joinpath(name).exists():
            return [folder / name]
        if index.exists():
            return [folder / part for part in _parts_of(index)]
    raise FileNotFoundError(
        f"`init_from` is {str(folder)!r}, which is no session folder and has none of "
        f"{', '.join(_OF_HUBS)}: give a session folder (session_...), a file, or a hub's model"
    )


def _parts_of(index: Path) -> list[str]:
    try:
        names = {*json.loads(read_bounded(index, _MOST_BYTES_OF_INDEX))["weight_map"].values()}
        if not names or any(name in (".", "..") or Path(name).name != name for name in names):
            raise ValueError("names no files beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as ex:
        raise ValueError(f"`init_from`: {index} is no index of a hub's model: {ex}") from None
    return sorted(names)


def _check(file: Path, path: str) -> None:
    """Refuses a file that can't be loaded; raises a ValueError that says why."""
    begin = f"`init_from` is {path!r}: {file}"
    if _is_sharded(file):
        raise ValueError(
            f"{begin} is a sharded checkpoint: make one file of it by `python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {file} weights.pt`, and give "
            "that"
        )
    try:
        with open_file(file) as opened:
            is_zip = opened.read(2) == b"PK"
    except OSError as ex:
        raise ValueError(f"{begin} can't be read: {ex.strerror}") from None
    if file.suffix == ".safetensors":
        fault = _fault_of_safetensors(file)
    elif not is_zip:
        fault = f"is no file of `torch.save` (1.6 or newer): {_ANEW}"
    else:
        fault = find_fault(file) or _fault_of_structure(file)
    if fault:
        raise ValueError(f"{begin} {fault}")


def _fault_of_structure(file: Path) -> str:
    try:
        read_outline(file)
    except pickle.UnpicklingError as ex:
        return f"has more than weights: {ex}: {_ANEW}"
    except Exception as ex:  # `pickle` raises a dozen kinds
        return f"can't be read: {ex}"
    return ""


def _fault_of_safetensors(file: Path) -> str:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        return f"needs a package to be read: {install_command('weights')}"
    try:
        with safe_open(file, framework="pt"):
            return ""
    except SafetensorError as ex:
        return f"is truncated, damaged or no safetensors: {ex}"


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Those of a state dict, which lies in a checkpoint beside other things."""
    parts = [content]
    if isinstance(content, Mapping):
        inner = {name: part for name, part in content.items() if _holds_tensors(part)}
        named = [inner[name] for name in _NAMES if name in inner]
        parts = named or [part for part in [content] if _holds_tensors(part)] or [*inner.values()]
    for name, value in parts[0].items() if parts and isinstance(parts[0], Mapping) else ():
        if isinstance(name, str) and isinstance(value, Tensor):
            yield name, value


def _holds_tensors(part: Any) -> bool:
    return isinstance(part, Mapping) and any(isinstance(v, Tensor) for v in part.values())
