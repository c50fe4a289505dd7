"""Starts TensorBoard with the tags of sessions as their names: python cli.py look."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from lightning_trainer.commands.options import CommandParser
from lightning_trainer.commands.sessions import find_sessions
from lightning_trainer.session.record import Record

_DESCRIPTION = """Starts TensorBoard for the sessions of folders, or for some sessions. They are
called by tag and time there: of a folder's whole name its lists show only the beginning. Those that
begin later are not shown; `tensorboard --logdir FOLDER` finds them, by the folders' names."""
_LONGEST = 2**17  # bytes of a word of a command line, in Linux
# Training and validation are in one chart there only. As two runs of a session, which TIME SERIES
# would draw together, they had unrelated colours, and three lines in each list.
_TAB = "#custom_scalars"
_OPEN = """
import socket, sys, time, webbrowser
for _ in range(100):
    try:
        socket.create_connection(("localhost", int(sys.argv[2])), 1).close()
        break
    except OSError:
        time.sleep(0.3)
webbrowser.open(sys.argv[1])
"""
_SPECIAL = re.compile(r"[,:]")  # take the list of TensorBoard's option apart


def look(argv: list[str]) -> int:
    """Runs the command with the words after `look`; TensorBoard takes the place of this process."""
    parser = CommandParser("look", description=_DESCRIPTION)
    parser.add_argument("folders", nargs="*", default=["experiments"], metavar="FOLDER")
    parser.add_argument("--tag", default="", metavar="TEXT", help="only those with TEXT in the tag")
    parser.add_argument("--port", type=int, default=6006, help="of this machine (default: 6006)")
    where = "opens it in the browser of this machine, at the curves"
    parser.add_argument("--open", action="store_true", help=where)
    options = parser.parse_args(argv)
    try:
        paths = [path for folder in options.folders for path in find_sessions(Path(folder))]
    except OSError as ex:
        parser.error(str(ex))
    records = [record for record in map(Record.read, paths) if options.tag in record.tag]
    names = tensorboard_names(records)
    if not names:
        parser.error(f"{', '.join(options.folders)}: there are no such sessions")
    if not find_spec("tensorboard"):
        parser.error("TensorBoard is not installed: `pip install tensorboard`")
    spec = ",".join(f"{name}:{path}" for name, path in names.items())
    url = f"http://localhost:{options.port}/"
    if len(os.fsencode(spec)) >= _LONGEST:
        parser.error(
            f"{len(names)} sessions are too many for one command: choose some by `--tag`, or call "
            "`tensorboard --logdir FOLDER`"
        )
    print(f"Training and validation in one chart: {url}{_TAB}", flush=True)
    print(f"All numbers: {url}#timeseries", flush=True)
    if options.open:
        words = [sys.executable, "-c", _OPEN, f"{url}{_TAB}", str(options.port)]
        subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir_spec", spec]
    os.execv(sys.executable, [*command, "--port", str(options.port)])


def tensorboard_names(records: list[Record]) -> dict[str, Path]:
    """The folders by tag and time, e.g. "wide 11-27 02.17"; without paths that can't be given."""
    found: dict[str, Path] = {}
    for record in records:
        if _SPECIAL.search(str(record.path)):
            print(f"{record.path} is left out: rename it without , and :", file=sys.stderr)
            continue
        time = record.started[5:16].replace("T", " ")
        name = _SPECIAL.sub(".", f"{record.tag} {time}".strip())
        n = sum(other == name or other.startswith(f"{name} (") for other in found)
        found[f"{name} ({n + 1})" if n else name] = record.path
    return found
