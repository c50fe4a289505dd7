"""A process that ends at once does all that Python's own end does, but frees nothing."""

import os
import subprocess
import sys

from conftest import ROOT

ENDS = """
import atexit, concurrent.futures, gc, os, tempfile, threading, time
from lightning_trainer.internals_of_ends import end_process

gc.disable()
text, binary = open("text", "w"), open("binary", "w+b")
text.write("written")
binary.write(b"written")
folder = tempfile.TemporaryDirectory(dir=".")
closed = open("closed", "w")
closed.close()
atexit.register(print, "first registered")
atexit.register(print, "last registered")
pool = concurrent.futures.ThreadPoolExecutor()
pool.submit(lambda: (time.sleep(0.2), print("pool")))
pool.submit(threading.Thread(target=lambda: (time.sleep(0.4), print("thread"))).start)
end_process(7)
"""


def test_a_process_that_frees_nothing_ends_as_python_does(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ENDS]
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (7, "")
    assert ended.stdout.splitlines() == ["pool", "thread", "last registered", "first registered"]
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert files == {"text": "written", "binary": "written", "closed": ""}
    # What Python's own end does.
    plain = subprocess.run(
        [sys.executable, "-c", ENDS.replace("end_process(7)", "raise SystemExit(7)")],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert (plain.returncode, plain.stdout) == (7, ended.stdout)
