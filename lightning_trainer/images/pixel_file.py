"""PixelFile: decoded images in one file, which counts only while the image files stay as they are.

A line of JSON, then the pixels. The line has a digest of the names, sizes and times of change of
the image files and of how they were decoded, and a checksum of the pixels. Neither names nor labels
are in the file.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from time import time

import torch
from torch import Tensor

from lightning_trainer.session.door import open_file

_FORMAT = "pixels 2"  # another one whenever the code decodes in another way
_LONGEST_HEADER = 1000  # bytes
_FAULTS = (OSError, ValueError, KeyError, TypeError)  # of a file that is missing or no such file
_LEFT_S = 3600.0  # so old is what a killed process was writing


def describe_files(
    folder: str | os.PathLike[str], paths: Iterable[str], how: str
) -> tuple[str, float]:
    """A digest of files and of how they are decoded; when one was changed last, in s since 1970.

    The time of the last change of an inode counts too: no program can set it back, so that a file
    is noticed that was put in another's place with the same size and time.
    """
    digest = hashlib.sha256(f"{_FORMAT}, {how}\n".encode())
    newest_ns = 0
    for path in paths:
        status = os.stat(path)
        name = os.fsencode(path.removeprefix(os.fspath(folder)))
        times = status.st_mtime_ns, status.st_ctime_ns
        digest.update(b"%s\0%d %d %d\n" % (name, status.st_size, *times))
        newest_ns = max(newest_ns, *times)
    return digest.hexdigest(), newest_ns / 1e9


class PixelFile:
    """Decoded images of a folder, beside it or in the user's cache folder.

    Args:
        folder: Of the images.
        kind: Tells this folder's files apart.
        described: The digest of `describe_files`.
    """

    told = ""  # what to tell of the file that was read

    def __init__(self, folder: Path, kind: str, described: str) -> None:
        folder = folder.absolute()
        name, self._described = f"{folder.name}.{kind}.pixels", described
        self._paths = [folder.parent / name]
        caches = os.environ.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(caches):  # the XDG Base Directory Specification ignores such a path
            caches = os.path.expanduser("~/.cache")
        place = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
        self._paths.append(Path(caches, "lightning_trainer", f"{place}.{name}"))

    def load(self, shape: tuple[int, ...]) -> Tensor | None:
        """The images, uint8 of this shape, or None if no file has them as they are now."""
        images = torch.empty(shape, dtype=torch.uint8)
        for path in self._paths:
            with contextlib.suppress(*_FAULTS), open_file(path) as file:
                header = json.loads(file.readline(_LONGEST_HEADER))
                if header["described"] != self._described:
                    continue
                pixels = images.numpy().data.cast("B")
                whole = file.readinto(pixels) == len(pixels) and not file.read(1)
                if whole and zlib.crc32(pixels) == header["checksum"]:
                    told = _tell(images, path, "were decoded before, and read from")
                    self.told = f"{told}: remove it to decode them anew"
                    return images
        return None

    def keep(self, images: Tensor) -> str:
        """Writes the file, and returns what to tell of it: also where it could not be written."""
        pixels = images.numpy().data.cast("B")
        header = {"described": self._described, "checksum": zlib.crc32(pixels)}
        failures = []
        for path in self._paths:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _remove_remains(path)
                _write(path, f"{json.dumps(header)}\n".encode(), pixels)
            except OSError as ex:
                failures.append(f"{path} ({ex.strerror})")
                continue
            told = _tell(images, path, "are kept decoded for the next start in")
            return f"{told}, which can be removed at any time"
        return f"Images: they can't be kept decoded in {' nor in '.join(failures)}"


def _write(path: Path, *parts: bytes | memoryview) -> None:
    """Only for its owner, as the images may be; it takes its name when all is written."""
    descriptor, part = tempfile.mkstemp(".part", f".{path.name}.", path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for content in parts:
                file.write(content)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def _remove_remains(path: Path) -> None:
    for part in path.parent.glob(f".{path.name}.*.part"):
        with contextlib.suppress(OSError):
            if part.stat().st_mtime < time() - _LEFT_S:
                part.unlink()


def _tell(images: Tensor, path: Path, what: str) -> str:
    return f"Images: {len(images):,} ({images.nbytes / 1e6:.0f} MB) {what} {path}"
