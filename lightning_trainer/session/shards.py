"""Checks the folder of a sharded checkpoint, without torch: its metadata is a pickle.

torch would make whatever object such a pickle names. What torch itself writes there needs a dozen
classes of plain values, and names files beside it.
"""

import io
import os
import pickle
import re
import stat
from pathlib import Path
from typing import Any

from lightning_trainer.session.door import read_bounded
from lightning_trainer.session.pickle_bounds import check_pickle

METADATA = ".metadata"
_MOST_BYTES, _MOST_STEPS = 2**29, 20_000_000

_CLASSES = {
    **dict.fromkeys(
        (
            *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties"),
            *("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
            "_MEM_FORMAT_ENCODING",
        ),
        "torch.distributed.checkpoint.metadata",
    ),
    **dict.fromkeys(("_StorageInfo", "_StoragePrefix"), "torch.distributed.checkpoint.filesystem"),
    **{"_get_layout": "torch.serialization", "Size": "torch", "OrderedDict": "collections"},
}
_PATHS = ("pathlib", "pathlib._local")  # the second in Python 3.13
_DTYPE = re.compile(r"bool|b?(float|complex)\d+\w*|q?u?int\d+(x\d)?|bits\d+(x\d)?")


def check_class(module: str, name: str) -> None:
    """Refuses what torch's metadata does not need.

    Raises:
        pickle.UnpicklingError: Names it.
    """
    is_dtype = module == "torch" and _DTYPE.fullmatch(name)
    is_path = module in _PATHS and name in ("PosixPath", "PurePosixPath", "WindowsPath")
    is_set = module == "builtins" and name == "set"
    if not (_CLASSES.get(name) == module or is_dtype or is_path or is_set):
        raise pickle.UnpicklingError(f"it holds `{module}.{name}`, which is not loaded")


class _Part:
    """Takes the place of an object of torch."""

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Files(_Part):
    """Where a tensor lies."""

    found: list[dict[str, Any]]

    def __setstate__(self, state: Any) -> None:
        self.found.append(dict(state))


class _Metadata(pickle.Unpickler):
    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.files: list[dict[str, Any]] = []

    def find_class(self, module: str, name: str) -> Any:
        check_class(module, name)
        if name == "_StorageInfo":
            return type(name, (_Files,), {"found": self.files})
        return type(name, (_Part,), {})


def read_metadata(folder: Path, name: str = METADATA) -> bytes:
    """The pickle of a folder's metadata, after a check of all that it names.

    Raises:
        OSError: If it, or a file that it names, is missing or no file.
        ValueError: If it is damaged, too large, or names what lies elsewhere.
        pickle.UnpicklingError: If it holds an object of another class.
    """
    content = read_bounded(folder / name, _MOST_BYTES)
    check_pickle(content, _MOST_STEPS)
    metadata = _Metadata(content)
    metadata.load()
    sizes: dict[str, int] = {}
    for file in metadata.files:
        path, offset, length = (file.get(k) for k in ("relative_path", "offset", "length"))
        if not isinstance(path, str) or os.path.basename(path) != path or path in ("", ".", ".."):
            raise ValueError(f"names the file {str(path)[:80]!r}, which does not lie beside it")
        if path not in sizes:
            status = os.lstat(folder / path)
            sizes[path] = status.st_size if stat.S_ISREG(status.st_mode) else -1
        if type(offset) is not int or type(length) is not int or min(offset, length) < 0:
            raise ValueError("has a place that is no number")
        if offset + length > sizes[path]:
            raise ValueError(f"names more of {path} than there is")
    return content
