"""What a checkpoint tells besides its tensors, read without torch in milliseconds."""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any


def read_header(path: Path) -> dict[str, Any]:
    """The plain values of a checkpoint, with a placeholder for each tensor and other object.

    Only the structure is read, none of the tensors' data, and nothing in it is executed. Empty
    where there is no checkpoint or it can't be read; it is not checked for damage.
    """
    try:
        file = path / "meta.pt" if path.is_dir() else path
        with zipfile.ZipFile(file) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            header = _Structure(io.BytesIO(archive.read(name))).load()
    except Exception:  # a damaged archive or pickle raises a dozen kinds
        return {}
    return header if isinstance(header, dict) else {}


class _Placeholder:
    """Stands for an object of any class."""

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Structure(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Placeholder

    def persistent_load(self, pid: Any) -> None:
        """Leaves a tensor's data where it is."""


KEY = "lightning_trainer"  # where a checkpoint holds all state of the layer
VERSION = 1


def layer_state(checkpoint: Any) -> dict[str, Any]:
    """The layer's part of a checkpoint."""
    return dict(checkpoint.get(KEY) or {})
