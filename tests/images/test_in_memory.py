"""A folder of images in memory: decoded once, and never the images as they were before."""

import json
import os
import re
import stat
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from lightning_utilities.core.rank_zero import rank_zero_only
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.io import decode_image

from lightning_trainer import read_image, read_images
from lightning_trainer.images import in_memory


def save_image(path: Path, seed: int) -> None:
    """Noise of 8 x 8 pixels, not compressed: all such files have one size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, compress_level=0)


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """All is kept, however soon it was decoded and lately changed; decoded in this process."""
    monkeypatch.setattr(in_memory, "_WORTH_S", 0)
    monkeypatch.setattr(in_memory, "_SETTLED_S", -3600)
    monkeypatch.setattr(in_memory, "_n_cores", lambda: 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "lightning_trainer"


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        save_image(tmp_path / "data/train" / "ab"[i % 2] / f"{i}.png", i)
    return tmp_path / "data/train"


@pytest.fixture
def kept(folder):
    """The file of a first start."""
    read_images(folder, 8)
    return folder.parent / "train.8px.pixels"


@pytest.fixture
def forbid_decoding(monkeypatch):
    def forbid():
        monkeypatch.setattr(in_memory, "_decode_all", lambda *args: pytest.fail("decoded anew"))

    return forbid


def is_right(folder: Path) -> bool:
    """Whether the images and labels that are read are those in the folder."""
    images, labels, classes = read_images(folder, 8)
    there = ImageFolder(str(folder), loader=decode_image)
    pixels, targets = zip(*there, strict=True)
    return (
        torch.equal(images, torch.stack(pixels))
        and labels.tolist() == [*targets]
        and classes == there.classes
    )


def test_the_second_start_decodes_nothing_and_has_the_same(folder, forbid_decoding):
    assert is_right(folder)
    forbid_decoding()
    assert is_right(folder)


def test_both_starts_tell_where_the_file_is_how_large_and_how_to_be_rid_of_it(folder, capsys):
    path = folder.parent / "train.8px.pixels"
    read_images(folder, 8)
    assert capsys.readouterr().out == (
        f"Images: 6 (0 MB) are kept decoded for the next start in {path}, "
        "which can be removed at any time\n"
    )
    read_images(folder, 8)
    assert capsys.readouterr().out == (
        f"Images: 6 (0 MB) were decoded before, and read from {path}: "
        "remove it to decode them anew\n"
    )


def test_one_process_of_a_run_tells_it(folder, capsys, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    read_images(folder, 8)
    read_images(folder, 8)
    assert capsys.readouterr().out == ""
    monkeypatch.delattr(rank_zero_only, "rank")  # as in a notebook without a trainer
    read_images(folder, 8)
    assert capsys.readouterr().out.startswith("Images: 6 (0 MB)")


def test_neither_start_draws_from_the_streams_of_the_run(folder):
    before = torch.get_rng_state()
    for _ in range(2):
        read_images(folder, 8)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.tif", "x.ppm", "gif.jpg"])
def test_what_torchvision_does_not_decode_to_8_bits_is_read_as_by_pil(name, tmp_path):
    wide = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    picture = Image.fromarray((wide >> 8).astype(np.uint8))
    if name == "x.png":
        Image.fromarray(wide).save(tmp_path / name)
    elif name == "gif.jpg":
        picture.save(tmp_path / name, "GIF", save_all=True, append_images=[picture.rotate(90)])
    else:
        picture.convert("RGB").save(tmp_path / name)
    expected = torch.from_numpy(wide >> 8).to(torch.uint8).expand(3, 8, 8)
    assert torch.equal(read_image(str(tmp_path / name)), expected)


@pytest.mark.parametrize(
    ("name", "pixels", "message"),
    [
        ("x.tif", np.zeros((8, 8), np.uint16), r"\(its pixels are I;16: convert it to 8 bits\)"),
        ("x.png", None, r"x.png can't be read as an image \(cannot identify image file "),
    ],
)
def test_what_is_no_image_of_8_bits_is_named_with_the_reason(name, pixels, message, tmp_path):
    if pixels is None:
        (tmp_path / name).write_text("no image")
    else:
        Image.fromarray(pixels).save(tmp_path / name)
    with pytest.raises(OSError, match=message):
        read_image(str(tmp_path / name))


def test_all_cores_decode_a_few_images_in_small_parts(folder, monkeypatch):
    """Workers of a container hand over what is in 64 MB of shared memory."""
    asked = []
    monkeypatch.setattr(in_memory, "_n_cores", lambda: 3)
    monkeypatch.setattr(in_memory, "DataLoader", lambda *a, **k: asked.append((a[1], k)) or ())
    for size in (8, 512, 1024):
        read_images(folder, size)
    assert [size for size, _ in asked] == [2, 1, 1]
    assert all(given["num_workers"] == 3 for _, given in asked)


def test_a_moved_folder_keeps_its_file(folder, kept, tmp_path, forbid_decoding):
    forbid_decoding()
    folder.parent.rename(tmp_path / "elsewhere")
    assert is_right(tmp_path / "elsewhere/train")


# Never stale ----------------------------------------------------------------------------------


def replace_image(folder: Path) -> None:
    save_image(folder / "a/0.png", 99)


def replace_by_one_of_the_same_time(folder: Path) -> None:
    path = folder / "a/0.png"
    status = path.stat()
    save_image(folder.parent / "new.png", 99)
    os.utime(folder.parent / "new.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(folder.parent / "new.png", path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def replace_by_an_older_one(folder: Path) -> None:
    save_image(folder / "a/0.png", 99)
    os.utime(folder / "a/0.png", (0, 0))


def exchange_two(folder: Path) -> None:
    first, second = folder / "a/0.png", folder / "a/2.png"
    first.rename(folder / "third")
    second.rename(first)
    (folder / "third").rename(second)


def add_image(folder: Path) -> None:
    save_image(folder / "a/1.png", 99)


def remove_image(folder: Path) -> None:
    (folder / "a/0.png").unlink()


def add_in_place_of_another(folder: Path) -> None:
    remove_image(folder)
    add_image(folder)


def move_to_another_class(folder: Path) -> None:
    (folder / "a/0.png").rename(folder / "b/0.png")


def rename_class(folder: Path) -> None:
    (folder / "a").rename(folder / "c")


def lead_link_elsewhere(folder: Path) -> None:
    save_image(folder.parent / "new.png", 99)
    remove_image(folder)
    (folder / "a/0.png").symlink_to(folder.parent / "new.png")


CHANGES = [
    *(replace_image, replace_by_one_of_the_same_time, replace_by_an_older_one, exchange_two),
    *(add_image, remove_image, add_in_place_of_another, move_to_another_class, rename_class),
    lead_link_elsewhere,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_after_a_change_the_images_are_those_that_are_there(folder, kept, change):
    before = kept.read_bytes()
    change(folder)
    assert is_right(folder)
    assert kept.read_bytes() != before
    assert is_right(folder)  # from the file that was written anew


def test_an_image_that_is_only_touched_is_decoded_anew(folder, kept, monkeypatch):
    n_decoded = []
    decode = in_memory.read_image
    monkeypatch.setattr(in_memory, "read_image", lambda path: n_decoded.append(1) or decode(path))
    (folder / "a/0.png").touch()
    assert is_right(folder)
    assert len(n_decoded) == 6


def test_another_torchvision_or_torch_decodes_anew(folder, kept, monkeypatch):
    for package in (torchvision, torch):
        before = kept.read_bytes()
        monkeypatch.setattr(package, "__version__", "99.0")
        assert is_right(folder)
        assert kept.read_bytes() != before


def test_another_size_has_a_file_of_its_own(folder, kept, forbid_decoding):
    assert read_images(folder, 4)[0].shape == (6, 3, 4, 4)
    forbid_decoding()
    assert read_images(folder, 4)[0].shape == (6, 3, 4, 4)
    assert is_right(folder)


def test_what_was_changed_just_now_is_not_kept(folder, monkeypatch, capsys):
    """Within one tick of a file system's clock a second change would leave the same time."""
    monkeypatch.setattr(in_memory, "_SETTLED_S", 2.0)
    assert is_right(folder)
    assert capsys.readouterr().out == (
        f"Images: {folder} has just been changed, so they are not kept decoded for the next start\n"
    )
    monkeypatch.setattr(in_memory, "time", lambda: time.time() + 3)
    assert is_right(folder)
    assert (folder.parent / "train.8px.pixels").exists()


def test_what_changes_while_it_is_decoded_is_not_kept(folder, monkeypatch):
    decode_all = in_memory._decode_all

    def decode_and_change(*args):
        images = decode_all(*args)
        replace_image(folder)
        return images

    monkeypatch.setattr(in_memory, "_decode_all", decode_and_change)
    read_images(folder, 8)
    monkeypatch.setattr(in_memory, "_decode_all", decode_all)
    assert [*folder.parent.iterdir()] == [folder]
    assert is_right(folder)


def test_what_is_decoded_soon_is_not_kept(folder, monkeypatch, capsys):
    monkeypatch.setattr(in_memory, "_WORTH_S", 1.0)
    assert is_right(folder)
    assert [*folder.parent.iterdir()] == [folder]
    assert capsys.readouterr().out == ""


# The file itself ------------------------------------------------------------------------------


def test_the_file_is_its_owners_and_has_neither_names_nor_labels(kept):
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    header, pixels = kept.read_bytes().split(b"\n", 1)
    assert {*json.loads(header)} == {"described", "checksum"}
    assert re.fullmatch("[0-9a-f]{64}", json.loads(header)["described"])
    assert len(pixels) == 6 * 3 * 8 * 8


def cut(content: bytes) -> bytes:
    return content[:-1]


def lengthen(content: bytes) -> bytes:
    return content + b"\0"


def flip_a_bit(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lengthen,
        flip_a_bit,
        lambda _: b"",
        lambda _: b"[]\n",
        lambda _: b"{}",
        lambda _: b"\xff",
    ],
)
def test_a_damaged_file_is_not_used(folder, kept, damage):
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    assert is_right(folder)
    assert kept.read_bytes() == whole


def test_a_pipe_or_a_folder_in_its_place_holds_nobody_up(folder, kept, caches):
    for make in (os.mkfifo, os.mkdir):
        kept.unlink()
        make(kept)
        assert is_right(folder)
    [path] = caches.iterdir()  # a folder can't be replaced
    assert path.name.endswith(".train.8px.pixels")


def refuse(monkeypatch, *folders: Path) -> None:
    """Lets nothing be written there, as on a disk that is mounted for reading only."""
    mkstemp = tempfile.mkstemp

    def refusing(suffix, prefix, folder):
        if folder in folders:
            raise PermissionError(13, "Permission denied", str(folder))
        return mkstemp(suffix, prefix, folder)

    monkeypatch.setattr(tempfile, "mkstemp", refusing)


def test_beside_data_that_cannot_be_written_the_users_cache_folder_has_it(
    folder, caches, monkeypatch, capsys, forbid_decoding
):
    refuse(monkeypatch, folder.parent)
    assert is_right(folder)
    [path] = caches.iterdir()
    assert f" in {path}, " in capsys.readouterr().out
    forbid_decoding()
    assert is_right(folder)


def test_without_a_cache_folder_in_the_environment_it_is_that_of_the_home(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    refuse(monkeypatch, folder.parent)
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        replace_image(folder)
        assert is_right(folder)
        [path] = (tmp_path / "home/.cache/lightning_trainer").iterdir()
        path.unlink()


def test_where_nothing_can_be_written_one_line_tells_so(folder, caches, monkeypatch, capsys):
    refuse(monkeypatch, folder.parent, caches)
    assert is_right(folder)
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(
        f"Images: they can't be kept decoded in {folder.parent}/train.8px.pixels"
    )
    assert line.count("(Permission denied)") == 2


def test_a_full_disk_is_told_in_one_line_and_nothing_is_left(folder, caches, monkeypatch, capsys):
    mkstemp = tempfile.mkstemp

    def full(*args):
        descriptor, path = mkstemp(*args)
        os.close(descriptor)
        return os.open("/dev/full", os.O_WRONLY), path

    monkeypatch.setattr(tempfile, "mkstemp", full)
    assert is_right(folder)
    [line] = capsys.readouterr().out.splitlines()
    assert line.count("(No space left on device)") == 2
    assert [*folder.parent.iterdir()] == [folder]
    assert [*caches.iterdir()] == []


def test_what_is_stopped_while_it_writes_leaves_the_old_file(folder, kept, monkeypatch):
    old = kept.read_bytes()
    replace_image(folder)

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupt)
        read_images(folder, 8)
    assert kept.read_bytes() == old
    assert {*folder.parent.iterdir()} == {folder, kept}
    assert is_right(folder)


def test_the_remains_of_a_killed_process_are_not_read_and_go_after_an_hour(folder, kept):
    fresh, old = (folder.parent / f".{kept.name}.{name}.part" for name in ("fresh", "old"))
    for part in (fresh, old):
        part.write_bytes(kept.read_bytes()[:-7])
    os.utime(old, (0, time.time() - 3700))
    kept.unlink()
    assert is_right(folder)
    assert {*folder.parent.iterdir()} == {folder, kept, fresh}


def test_two_that_write_at_once_leave_one_whole_file(folder, monkeypatch, forbid_decoding):
    replace = os.replace

    def meanwhile(part, path):
        monkeypatch.setattr(os, "replace", replace)
        read_images(folder, 8)  # the other one, from its beginning to its end
        replace(part, path)

    monkeypatch.setattr(os, "replace", meanwhile)
    read_images(folder, 8)
    assert len([*folder.parent.iterdir()]) == 2
    forbid_decoding()
    assert is_right(folder)
