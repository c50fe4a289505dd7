"""Opens the zip file of a checkpoint within bounds, seals it, and finds damage in it.

Each record has a checksum. The seal, a comment at the end of the file, is one of all the rest:
names, places, sizes and the records' checksums. So a copy of the file keeps it, and to check it
takes no second pass. torch and other programs ignore it; files without one are read as well.
"""

import contextlib
import errno
import io
import os
import struct
import zipfile
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from lightning_trainer.session.door import open_file
from lightning_trainer.session.pickle_bounds import check_pickle

_SEAL = b"lightning_trainer seal "
_DIGEST_BYTES = 16
_MOST_BYTES_OF_SLICE = 2**24  # of what is no tensor
_SEAL_BYTES = len(_SEAL) + 2 * _DIGEST_BYTES
# The end of torch's zip files: zip64's "end of central directory", its locator, and 22 bytes in the
# old format (APPNOTE.TXT of PKWARE, 4.3.14 to 4.3.16).
_END = struct.Struct("<4sQHHIIQQQQ4sIQI")


class _Bounded(io.BufferedReader):
    """A file of which no more than `most` bytes are read at once, e.g. as its directory."""

    most = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(self.most + 1 if size is None or size < 0 else min(size, self.most + 1))
        if len(data) > self.most:
            raise MemoryError(f"it has more than {self.most / 2**20:.0f} MiB beside its tensors")
        return data


@contextlib.contextmanager
def open_archive(path: Path, most_bytes: int) -> Iterator[tuple[zipfile.ZipFile, BinaryIO]]:
    """Yields the zip file, of which no part in memory is larger than `most_bytes`, and its bytes.

    Its directory may have a sixteenth: each entry takes 20 us and 600 bytes.

    Raises:
        OSError: If it is no file, or can't be read.
        MemoryError: If a part is larger.
        ValueError: If records have one name, or overlap.
        zipfile.BadZipFile: If it is damaged; `zipfile` raises a dozen other kinds.
    """
    with _Bounded(open_file(path).detach()) as file:
        file.most = max(most_bytes // 16, 2**16)
        with zipfile.ZipFile(file) as archive:
            file.most = most_bytes
            _check_entries(archive.infolist(), file.seek(0, os.SEEK_END))
            yield archive, file


def _check_entries(entries: list[zipfile.ZipInfo], n_bytes: int) -> None:
    names = [entry.orig_filename for entry in entries]
    if len({name.lower() for name in names}) < len(names) or any("\0" in name for name in names):
        raise ValueError("two of its records have one name")
    if sum(entry.compress_size for entry in entries) > n_bytes:
        raise ValueError("its records overlap")


def read_structure(archive: zipfile.ZipFile) -> bytes:
    """The pickle of a checkpoint: the one that torch reads.

    Raises:
        ValueError: If there is none.
    """
    names = archive.namelist()
    wanted = f"{names[0].partition('/')[0]}/data.pkl" if names else ""
    if wanted not in names:
        raise ValueError("it has no record `data.pkl`")
    if not _is_plain(archive.getinfo(wanted)):
        raise ValueError("its record `data.pkl` is compressed")
    return archive.read(wanted)


def seal(file: BinaryIO, beside: bytes = b"") -> None:
    """Adds the seal to a zip file of `torch.save` that is open for writing and reading.

    `beside` is the content of another file that belongs to it.
    """
    end = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    file.seek(end - 2)
    file.write(struct.pack("<H", _SEAL_BYTES))  # the length of the comment
    digest = _digest(file, entries, end, beside)
    file.seek(end)
    file.write(_SEAL + digest.encode())


def archive_fault(archive: zipfile.ZipFile, file: BinaryIO, beside: bytes = b"") -> str | None:
    """The damage of a zip file, or None if it is whole; reads all of it, at about 1 GB/s.

    `beside` is what `seal` was given.
    """
    entries = archive.infolist()
    if not all(map(_is_plain, entries)):  # a compressed one might grow
        return "is damaged: its directory contradicts itself"
    if damaged := archive.testzip():
        return f"is damaged: the checksum of `{damaged}` is wrong"
    end = file.seek(max(file.seek(0, os.SEEK_END) - _SEAL_BYTES, 0))
    sealed = file.read(_SEAL_BYTES)
    if sealed.startswith(_SEAL):
        whole = sealed[len(_SEAL) :] == _digest(file, entries, end, beside).encode()
    else:
        whole = _is_directory_whole(file, entries)
    return None if whole else "is damaged: its directory contradicts itself"


class _Slice(io.RawIOBase):
    """A part of a file as torch has it, whose own `seek` from the end goes the wrong way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.seek(0, os.SEEK_END)
        self._size = file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = (0, self._file.tell(), self._size)[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "a place before the begin")
        self._file.seek(start + offset)
        return self._file.tell()


def slice_fault(file: BinaryIO, most_steps: int) -> str | None:
    """The damage of a zip file that is a part of another one, from which it is read."""
    view = _Bounded(_Slice(file))
    view.most = _MOST_BYTES_OF_SLICE
    try:
        with zipfile.ZipFile(view) as archive:
            _check_entries(archive.infolist(), view.seek(0, os.SEEK_END))
            check_pickle(read_structure(archive), most_steps)
            return archive_fault(archive, view)
    except Exception as ex:  # `zipfile` raises a dozen kinds
        return f"is damaged: {ex}"
    finally:
        file.seek(0)


def _digest(file: BinaryIO, entries: list[zipfile.ZipInfo], end: int, beside: bytes) -> str:
    """Of all bytes before `end` but those of the records, which have checksums of their own."""
    digest, at = blake2b(beside, digest_size=_DIGEST_BYTES), 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        file.seek(entry.header_offset + 26)
        begin = entry.header_offset + 30 + sum(struct.unpack("<2H", file.read(4)))
        for part in _parts(file, at, begin):
            digest.update(part)
        at = begin + entry.compress_size
    for part in _parts(file, at, end):
        digest.update(part)
    return digest.hexdigest()


def _parts(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    file.seek(begin)
    while begin < end and (part := file.read(min(2**16, end - begin))):
        begin += len(part)
        yield part


def _is_plain(entry: zipfile.ZipInfo) -> bool:
    """Whether torch can read an entry: not compressed, encrypted, split or a folder."""
    hidden, folder = entry.flag_bits & 0x2000, entry.external_attr & 0x10
    sizes_differ = entry.file_size != entry.compress_size
    return not (sizes_differ or entry.compress_type or entry.volume or hidden or folder)


def _is_directory_whole(file: BinaryIO, entries: list[zipfile.ZipInfo]) -> bool:
    """Whether the directory agrees with the records after it, which have no checksum.

    Python ignores contradictions that torch refuses. Only torch's own files have these records.
    """
    at = file.seek(-_END.size - 22, os.SEEK_END)
    name, *found = _END.unpack(file.read(_END.size))
    if name != b"PK\6\6":
        return True
    last = entries[-1]
    lengths = len(last.filename.encode()), len(last.extra), len(last.comment)
    file.seek(at - sum(lengths) - 18)  # the last 18 of the entry's 46 fixed bytes
    start, n = found[8], len(entries)
    sizes = [44, *found[1:3], 0, 0, n, n, at - start, start]
    same = found == [*sizes, b"PK\6\7", 0, at, 1]
    return same and struct.unpack("<3H", file.read(6)) == lengths
