"""In a real notebook's kernel: pip install ipykernel nbclient, then pytest -m slow."""

import asyncio
import importlib.util
import os
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

HAS_KERNEL = all(importlib.util.find_spec(name) for name in ("ipykernel", "nbclient", "nbformat"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_KERNEL, reason="pip install ipykernel nbclient nbformat"),
]

PROJECT = """
from conftest import TinyData, TinyModule
from lightning_trainer import fit, load
import signal, sys, time

class Net(TinyModule):
    def __init__(self, slow_s: float = 0.0, bad: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.slow_s, self.bad = slow_s, bad

    def forward_model(self, batch):
        assert not (self.bad and self.global_step == 3), "a fault in a cell"
        if self.training and self.slow_s and self.global_step > 2:
            open("slow", "w").close()
            time.sleep(self.slow_s)
        return super().forward_model(batch)

settings = {
    "model": Net, "data": TinyData,
    "trainer": dict(accelerator="cpu", max_steps=8, val_check_interval=4, log_every_n_steps=2),
}
handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
"""


def interrupt_once_slow(client, folder: Path) -> None:
    while not (folder / "slow").exists():
        time.sleep(0.05)
    asyncio.run(client.km.interrupt_kernel())


def run_cells(folder: Path, *cells: str, interrupted: bool = False) -> list[dict[str, str]]:
    """The outputs of each cell by kind: "stdout", "stderr", "result", "error"."""
    from nbclient import NotebookClient
    from nbformat import v4

    notebook = v4.new_notebook(cells=[v4.new_code_cell(textwrap.dedent(c)) for c in cells])
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=120, resources=where, allow_errors=True)
    if interrupted:
        threading.Thread(target=interrupt_once_slow, args=(client, folder), daemon=True).start()
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CI": ""})
    return [outputs_of(cell) for cell in notebook.cells]


def outputs_of(cell) -> dict[str, str]:
    found: dict[str, str] = {}
    for output in cell.outputs:
        if output.output_type == "stream":
            found[output.name] = found.get(output.name, "") + output.text
        elif output.output_type == "error":
            found["error"] = f"{output.ename}: {output.evalue}"
        else:
            found["result"] = output.data["text/plain"]
    return found


def test_cells_train_go_on_fail_and_train_again(tmp_path):
    begin, first, log, on, bad, again, loaded, same = run_cells(
        tmp_path,
        PROJECT,
        "session = fit(settings, tag='first')\nsession",
        "print((session.path / 'log.txt').read_text(), end='')",
        "session = fit(ckpt_path=session, trainer={'max_steps': 10})\nsession.iteration",
        "fit(settings, tag='bad', model={'bad': True})",
        "fit(settings, tag='again').state",
        "load(session).module.training",
        "handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]",
    )
    assert begin == {}
    assert "finished, iteration 8, val/accuracy (max)" in first["result"]
    shown = first["stdout"]
    assert "Iteration      8/8" in shown and "`Net`: defined in this notebook" in shown
    assert log["stdout"].startswith("Session: ") and "Iteration      8/8" in log["stdout"]
    assert 'To go on:      fit(ckpt_path="experiments/session_' in shown
    assert "ipykernel" not in shown and "To test" not in shown
    assert "100%" in first["stderr"]  # the bar of a validation
    assert (on["result"], again["result"], loaded["result"]) == ("10", "'finished'", "False")
    assert bad["error"] == "RunError: AssertionError: a fault in a cell"
    assert same["result"] == "True"


def test_interrupting_the_kernel_saves_and_leaves_it_usable(tmp_path):
    _, stopped, same, on = run_cells(
        tmp_path,
        PROJECT,
        "fit(settings, model={'slow_s': 0.5})",
        "handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]",
        """
        import glob
        [folder] = glob.glob("experiments/*")
        before = load(folder + "/checkpoints/last.ckpt").iteration
        after = fit(ckpt_path=folder, model={"slow_s": 0.0})
        3 <= before < after.iteration == 8, after.state
        """,
        interrupted=True,
    )
    assert stopped["error"].startswith("KeyboardInterrupt: the run has ended, and all is saved")
    assert "Stopped by SIGINT at iteration" in stopped["stdout"]
    assert same["result"] == "True"
    assert on["result"] == "(True, 'finished')"
