"""Makes what a stranger may send: session folders and checkpoints of many hostile families.

Each family is a function of a number, so that the same number makes the same input. Code in an
input would leave the folder EXECUTED.
"""

import json
import os
import pickle
import random
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

EXECUTED = Path("executed")
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
FILES = ("config.yaml", "environment.yaml", "run.json", "metrics.csv", ".lock", "log.txt")
FAMILIES: dict[str, Callable[[Path, random.Random], None]] = {}


def family(name: str) -> Callable[[Callable], Callable]:
    def add(make: Callable[[Path, random.Random], None]) -> Callable:
        FAMILIES[name] = make
        return make

    return add


class Executed:
    """Leaves a trace where it is unpickled."""

    def __init__(self, way: int = 0) -> None:
        self.way = way

    def __reduce__(self):
        path = str(EXECUTED.absolute())
        ways = [(os.mkdir, (path,)), (os.system, (f"mkdir -p {path}",)), (eval, (CODE % path,))]
        return ways[self.way % 3]


CODE = "__import__('os').makedirs(%r, exist_ok=True)"


def make(name: str, number: int, honest: Path, folder: Path) -> Path:
    """A session folder of a family, from a copy of an honest one."""
    session = folder / f"session_node1_2024_02_29_12_00_00_h{number}"
    shutil.copytree(honest, session, symlinks=True)
    FAMILIES[name](session, random.Random(f"{name} {number}"))
    return session


def forget(session: Path) -> None:
    """Takes away what would spare `sessions` the look into checkpoints."""
    path = session / "run.json"
    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def put_checkpoint(session: Path, pickled: bytes, **options: object) -> None:
    """A zip file in the place of both checkpoints, with this pickle."""
    forget(session)
    for name in ("last", "best"):
        with zipfile.ZipFile(session / f"checkpoints/{name}.ckpt", "w", **options) as archive:
            archive.writestr("a/data.pkl", pickled)
            archive.writestr("a/version", "3\n")


def content(extra: object) -> dict:
    return {"global_step": 3, "state_dict": {}, "extra": extra}


def nest(n: int) -> tuple:
    value: tuple = (1,)
    for _ in range(n):
        value = (value, value)
    return value


# Files --------------------------------------------------------------------------------------------


@family("a pipe, device, socket, folder or endless link for a file")
def _(session: Path, draw: random.Random) -> None:
    for name in draw.sample([*FILES, "checkpoints/last.ckpt", "checkpoints/best.ckpt"], 3):
        path = session / name
        path.unlink(missing_ok=True)
        kind = draw.choice(["pipe", "zero", "folder", "loop", "random", "full"])
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            target = path.name if kind == "loop" else "/dev/urandom" if kind == "random" else None
            path.symlink_to(target or f"/dev/{kind}")
    if draw.random() < 0.5:
        forget(session)


@family("a link to a file or folder of the user's")
def _(session: Path, draw: random.Random) -> None:
    for name in draw.sample([*FILES, "config.yaml.tmp", "run.json.tmp", "metrics.tmp"], 3):
        (session / name).unlink(missing_ok=True)
        target = draw.choice(["../precious/text", "../precious/missing", "/etc/passwd"])
        (session / name).symlink_to(target)


@family("a file of a size that nothing should have")
def _(session: Path, draw: random.Random) -> None:
    name = draw.choice([*FILES, "checkpoints/last.ckpt"])
    (session / name).touch()
    os.truncate(session / name, 2 ** draw.choice([31, 34, 40]))
    forget(session)


@family("random bytes, or an honest file with random changes")
def _(session: Path, draw: random.Random) -> None:
    for name in draw.sample([*FILES, "checkpoints/last.ckpt", "checkpoints/best.ckpt"], 3):
        path = session / name
        text = bytearray(path.read_bytes() if path.exists() and draw.random() < 0.7 else b"x" * 999)
        for _ in range(draw.choice([1, 3, 30])):
            text[draw.randrange(len(text)) if text else 0 :][:1] = b""
            if text:
                text[draw.randrange(len(text))] = draw.randrange(256)
        path.write_bytes(text[: draw.randrange(len(text) + 1)] if draw.random() < 0.5 else text)


# Settings -----------------------------------------------------------------------------------------


@family("YAML that grows, nests or goes round")
def _(session: Path, draw: random.Random) -> None:
    texts = [
        BOMB,
        BOMB + "model: *a39\n",
        "a: &a {b: *a, c: [*a, *a]}\n",
        "a: " + "[" * 10**5,
        "a: " + "{b: " * 10**5,
        "a: [" + "{}," * 10**6 + "]",
        "a: " + "7" * 10**6,
        "a: 0x" + "f" * 10**6,
        "a: " + ":".join(["59"] * 10**6),
        "? " * 10**5 + "a",
        "a: &a x\n" + "b: *a\n" * 10**6,
        "- " * 10**6,
        "m: &m {a: 1}\n" + "".join(f"n{i}: {{<<: [*m, *m]}}\n" for i in range(10**5)),
        "a: 'x\n\n" * 10**5,
        "a: " + "!!binary " + "A" * 3 * 10**6,
        "a: " + "x" * 3 * 10**6,
    ]
    names = draw.choice(
        [["config.yaml"], ["environment.yaml"], ["config.yaml", "environment.yaml"]]
    )
    for name in names:
        (session / name).write_text(draw.choice(texts))


@family("YAML tags that make objects")
def _(session: Path, draw: random.Random) -> None:
    path = EXECUTED.absolute()
    tag = draw.choice(
        [
            f"!!python/object/apply:os.mkdir [{path}]",
            f"!!python/object/new:os.mkdir [{path}]",
            f"!!python/object/apply:os.system ['mkdir -p {path}']",
            "!!python/module:evil",
            "!!python/name:evil.M",
            f"!!python/object/apply:eval [{json.dumps(CODE % path)}]",
        ]
    )
    name = draw.choice(["config.yaml", "environment.yaml"])
    text = (session / name).read_text()
    (session / name).write_text(draw.choice([f"{text}extra: {tag}\n", f"{tag}\n", f"a: {tag}\n"]))
    (session / "evil.py").write_text(evil())


@family("a class, function or module of the folder in a setting")
def _(session: Path, draw: random.Random) -> None:
    (session / "evil.py").write_text(evil())
    (session / "__init__.py").write_text(evil())
    folder = ".".join(session.relative_to(Path.cwd()).parts)
    module = draw.choice([f"{folder}.evil", folder, "evil"])
    spec = draw.choice([f"{module}.M", f"{{class_path: {module}.M}}"])
    callback = "lightning.pytorch.callbacks.LambdaCallback"
    group = draw.choice(
        [
            f"model: {spec}",
            f"data: {spec}",
            f"trainer: {{callbacks: [{spec}]}}",
            f"trainer: {{logger: {spec}}}",
            f"trainer: {{plugins: [{spec}]}}",
            f"trainer: {{strategy: {spec}}}",
            f"trainer: {{profiler: {spec}}}",
            f"trainer: {{callbacks: [{{class_path: {callback}, "
            f"init_args: {{on_test_start: {module}.M, on_fit_start: {module}.M}}}}]}}",
        ]
    )
    replace_setting(session / "config.yaml", group)


@family("a program of Python or an address in a setting")
def _(session: Path, draw: random.Random) -> None:
    path = EXECUTED.absolute()
    popen = f"{{class_path: subprocess.Popen, init_args: {{args: [mkdir, {path}]}}}}"
    callback = "{class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: "
    replace_setting(
        session / "config.yaml",
        draw.choice(
            [
                f"model: {popen}",
                f"data: {popen}",
                f"trainer: {{callbacks: [{popen}]}}",
                f"trainer: {{logger: {popen}}}",
                f"trainer: {{callbacks: [{callback}{{on_fit_start: os.abort}}}}]}}",
                f"trainer: {{callbacks: [{callback}{{on_test_start: os.abort}}}}]}}",
                "model: http://127.0.0.1:9/a.yaml",
                "data: memory://a.yaml",
                "model: /dev/zero",
                f"trainer: {{callbacks: [{{class_path: os.system, init_args: {{a: {path}}}}}]}}",
            ]
        ),
    )


def evil() -> str:
    return f"{CODE % str(EXECUTED.absolute())}\nfrom conftest import TinyModule as M\n"


def replace_setting(path: Path, group: str) -> None:
    """Puts one group in place of the one of that name."""
    key = group.partition(":")[0]
    lines = path.read_text().splitlines(keepends=True)
    at = lines.index(f"{key}:\n")
    end = next((n for n in range(at + 1, len(lines)) if lines[n][0] != " "), len(lines))
    path.write_text("".join([*lines[:at], f"{group}\n", *lines[end:]]))


# The run's own files ------------------------------------------------------------------------------


@family("run.json that is deep, long or of other kinds")
def _(session: Path, draw: random.Random) -> None:
    known = json.loads((session / "run.json").read_text())
    big = 10 ** draw.choice([30, 400, 4000])
    values = [
        big,
        -big,
        1e308,
        float("nan"),
        float("inf"),
        "\x1b[2J",
        None,
        [],
        {},
        True,
        "x" * 10**5,
    ]
    for name in draw.sample(sorted(known), 4):
        known[name] = draw.choice(values)
    known["times"] = draw.choice([known["times"], {"elapsed_s": big, "examples": big}, {}])
    score = {"name": "val/\x1b]0;x\x07", "best": big, "iteration": big}
    known["score"] = draw.choice([known["score"], score, {"best": "x"}])
    texts = [json.dumps(known), "[" * 10**5, '{"a":' * 10**5, '{"version": ' + "1" * 10**5 + "}"]
    (session / "run.json").write_text(draw.choice([texts[0]] * 3 + texts[1:]))


@family("metrics.csv with lines, rows or numbers without end")
def _(session: Path, draw: random.Random) -> None:
    forget(session)
    (session / "checkpoints/last.ckpt").unlink()
    (session / "checkpoints/best.ckpt").unlink()
    head = "step,val/accuracy,timing/examples_per_s\n"
    text = [
        lambda: "step," + "a," * 10**7,
        lambda: head + "1," * 10**7,
        lambda: head + "".join(f"{n},0.5,{n}\n" for n in range(10**6)),
        lambda: head + '1,"' + "x" * 10**7,
        lambda: head + f"{'9' * 18},1e400,nan\n" * 1000,
        lambda: head + "\0" * 10**7,
        lambda: "step," + ",".join(f"val/{n}" for n in range(10**5)) + "\n",
        lambda: "x" * 10**8,
    ]
    (session / "metrics.csv").write_text(draw.choice(text)())


# Checkpoints --------------------------------------------------------------------------------------


@family("a checkpoint with code")
def _(session: Path, draw: random.Random) -> None:
    forget(session)
    for name in ("last", "best"):
        path = session / f"checkpoints/{name}.ckpt"
        honest = torch.load(path)
        path.unlink()
        where = draw.choice(["global_step", "state_dict", "lightning_trainer", "loops", "evil"])
        honest[where] = Executed(draw.randrange(3))
        torch.save(honest, path, pickle_protocol=draw.choice([2, 4]))


@family("a pickle that repeats itself, nests, or asks for memory")
def _(session: Path, draw: random.Random) -> None:
    looped: list = []
    looped.append(looped)
    # A key of a dict: its hash takes 2**60 steps.
    tuples = b"K\x01\x85q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60))
    head = b"\x80\x02}(X\x01\x00\x00\x00a"
    pickles = [
        pickle.dumps(content([nest(35)]), 2),
        b"\x80\x02}" + tuples + b"K\x01s.",
        b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        pickle.dumps(content(looped), 2),
        head + b"r" + struct.pack("<I", 2**31 - 1) + b"u.",
        head + b"K\x01r" + struct.pack("<I", 2**28) + b"u.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
        b"\x80\x05\x96" + struct.pack("<Q", 2**35) + b".",
        b"\x80\x02X" + struct.pack("<I", 2**31) + b".",
        b"\x80\x02" + b"}" * 3 * 10**7 + b".",
        b"\x80\x02" + b"(" * 3 * 10**7 + b".",
        b"\x80\x02" + b"\x85" * 10**6 + b".",
        b"\x80\x02)" + b"\x85" * 10**6 + b"}h\x00K\x01s.",
        b"\x80\x02" + b"ccollections\nOrderedDict\n)R" * 10**6 + b".",
        b"\x80\x02\x8b" + struct.pack("<i", 2**30) + b".",
        b"2" * 10**6,
        b"",
    ]
    put_checkpoint(session, draw.choice(pickles))


@family("a zip that grows, lies about itself, or holds another pickle")
def _(session: Path, draw: random.Random) -> None:
    kind = draw.randrange(7)
    honest = pickle.dumps(content(1), 2)
    if kind == 0:
        put_checkpoint(session, b"}" * 10**8, compression=zipfile.ZIP_DEFLATED)
        return
    put_checkpoint(session, honest)
    path = session / "checkpoints/last.ckpt"
    evil = pickle.dumps(content(Executed(draw.randrange(3))), 2)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == 1:
            archive.writestr("a/data.pkl", evil)
        elif kind == 2:
            archive.writestr("A/DATA.PKL", evil)
        elif kind == 3:
            archive.writestr("a/data/0", b"\0" * 10**8, zipfile.ZIP_DEFLATED)
    raw = bytearray(path.read_bytes())
    if kind == 4:
        for _ in range(4):
            raw[-draw.randrange(1, 120)] = draw.randrange(256)
    elif kind > 4:  # a directory of many entries
        start = raw.index(b"PK\1\2")
        entry = bytes(raw[start : raw.index(b"PK\1\2", start + 1)])
        directory = entry * (draw.choice([2**23, 2**24 - 99, 2**26]) // len(entry))
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, len(directory), start, 0)
        raw[start:] = directory + end
    path.write_bytes(raw)
    shutil.copyfile(path, session / "checkpoints/best.ckpt")


@family("a sharded checkpoint with code, or with files elsewhere")
def _(session: Path, draw: random.Random) -> None:
    forget(session)
    import torch.distributed.checkpoint as dcp

    honest = torch.load(session / "checkpoints/last.ckpt")
    for name in ("last", "best"):
        path = session / f"checkpoints/{name}.ckpt"
        path.unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind = draw.randrange(5)
            number = Executed(draw.randrange(3)) if kind == 0 else 0.5
            dcp.save({"state_dict": honest["state_dict"], "a": number}, checkpoint_id=path)
        plain = {key: value for key, value in honest.items() if key != "state_dict"}
        torch.save({**plain, "evil": Executed()} if kind == 1 else plain, path / "meta.pt")
        metadata = pickle.loads((path / ".metadata").read_bytes())
        if kind == 2:
            (path / ".metadata").write_bytes(pickle.dumps(Executed(draw.randrange(3))))
        elif kind == 3:
            metadata.planner_data = Executed(draw.randrange(3))
            (path / ".metadata").write_bytes(pickle.dumps(metadata))
        elif kind == 4:
            for info in metadata.storage_data.values():
                info.relative_path = draw.choice(["/dev/zero", "../../config.yaml", "link"])
            (path / "link").symlink_to("/dev/zero")
            (path / ".metadata").write_bytes(pickle.dumps(metadata))


@family("settings in a checkpoint alone")
def _(session: Path, draw: random.Random) -> None:
    (session / "evil.py").write_text(evil())
    folder = ".".join(session.relative_to(Path.cwd()).parts)
    (session / "config.yaml").write_text(draw.choice(["", "[]", "{"]))
    forget(session)
    bomb: list = ["x"]
    for _ in range(35):
        bomb = [bomb, bomb]
    for name in ("last", "best"):
        path = session / f"checkpoints/{name}.ckpt"
        honest = torch.load(path)
        path.unlink()
        settings = honest["lightning_trainer"]["settings"]
        kind = draw.randrange(4)
        if kind == 0:
            settings["model"] = {"class_path": f"{folder}.evil.M"}
        elif kind == 1:
            settings["trainer"]["callbacks"] = [{"class_path": f"{folder}.evil.M"}]
        elif kind == 2:
            settings["data"]["init_args"]["n_samples"] = bomb
        else:
            settings["tag"] = "\x1b]0;owned\x07" * 1000
        torch.save(honest, path)
