"""The pictures of a session: those that its run drew for TensorBoard, and those in its folder."""

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lightning_trainer.session.door import open_file, read_bounded

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

_LARGEST = 2**20  # bytes of a picture
_SMALLEST = 150  # bytes of a record that may hold one: scalars are smaller
_RESTART = b"\x3a\x02\x08\x01"  # a `session_log` with the status START, in a record of 20 bytes
_MOST_RECORDS = 2_000_000  # of a file: about a second
_MOST_TAGS = 40
_KINDS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}
_OF_FOLDER = ("confusion_matrix", "mistakes", "test_confusion_matrix", "test_mistakes")


@dataclass(frozen=True)
class Picture:
    """A picture of a run."""

    name: str  # its tag, e.g. "val/predictions"
    iteration: int | None  # None if only the run knows
    kind: str  # "png", "jpeg" or "gif"
    content: bytes


def read_pictures(folder: Path, best_iteration: int | None, most_bytes: int) -> list[Picture]:
    """The newest picture of each tag, after it that of the best score; as many as fit in."""
    found = [*_of_folder(folder)]
    in_folder = {picture.name for picture in found}
    for tag, of_tag in sorted(_of_events(folder, best_iteration).items(), key=_first_validation):
        if tag.rpartition("/")[2] not in in_folder:  # else the folder's is of the best score
            found += [of_tag[step] for step in sorted(of_tag, reverse=True)]
    fitting: list[Picture] = []
    for picture in found:
        most_bytes -= len(picture.content)
        if most_bytes < 0:
            break
        fitting.append(picture)
    return fitting


def _first_validation(item: tuple[str, dict[int, Picture]]) -> tuple[bool, str]:
    return not item[0].startswith("val"), item[0]


def _of_folder(folder: Path) -> Iterator[Picture]:
    for name in _OF_FOLDER:
        with contextlib.suppress(OSError, ValueError):
            content = read_bounded(folder / f"{name}.png", _LARGEST)
            if kind := _kind(content):
                yield Picture(name, None, kind, content)


def _of_events(folder: Path, best_iteration: int | None) -> dict[str, dict[int, Picture]]:
    """By tag and iteration the newest one, and that of the best score."""
    found: dict[str, dict[int, Picture]] = {}
    paths = sorted(folder.glob("events.out.tfevents.*"))
    for event in (event for path in paths for event in _events(path)):
        if event.session_log.status == event.session_log.START:  # goes on from an earlier iteration
            for of_tag in found.values():
                for step in [step for step in of_tag if step >= event.step > 0]:
                    del of_tag[step]
        for value in event.summary.value:
            content = value.image.encoded_image_string
            kind = _kind(content) if len(content) <= _LARGEST else ""
            if kind and (value.tag in found or len(found) < _MOST_TAGS):
                of_tag = found.setdefault(value.tag, {})
                for step in [step for step in of_tag if step != best_iteration]:
                    del of_tag[step]
                of_tag[event.step] = Picture(value.tag, event.step, kind, content)
    return found


def _kind(content: bytes) -> str:
    return next((kind for begin, kind in _KINDS.items() if content.startswith(begin)), "")


def _events(path: Path) -> Iterator["Event"]:
    """The larger records of an event file; one that is cut or damaged ends there."""
    from tensorboard.compat.proto.event_pb2 import Event  # TensorBoard's reader takes 0.2 s longer

    with contextlib.suppress(OSError), open_file(path) as file:
        for content in _records(file):
            try:
                yield Event.FromString(content)
            except Exception:  # protobuf's own kind, which is a package of TensorBoard's
                return


def _records(file: BinaryIO) -> Iterator[bytes]:
    """A record of a TFRecord file: length (8 bytes), checksum (4), content, checksum (4).

    https://www.tensorflow.org/tutorials/load_data/tfrecord
    """
    size = file.seek(0, 2)
    file.seek(0)
    for _ in range(_MOST_RECORDS):
        head = file.read(12)
        if len(head) < 12:
            return
        [length] = struct.unpack("<Q", head[:8])
        if length > size - file.tell():
            return
        if _SMALLEST <= length <= _LARGEST + 2**16:
            yield file.read(length + 4)[:-4]
        elif length < _SMALLEST:
            content = file.read(length + 4)[:-4]
            if content.endswith(_RESTART):
                yield content
        else:
            file.seek(length + 4, 1)
