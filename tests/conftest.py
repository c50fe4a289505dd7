"""One tiny project, and how the tests run it."""

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from forks import ForkedProcess, stop_server
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_trainer import BaseDataModule, BaseModule
from lightning_trainer.main import main
from lightning_trainer.report.curves import DrawCurves
from lightning_trainer.verify import kills

# Until all tests are collected: what is imported and compiled makes little garbage.
gc.disable()

# The tests' models are too small for threads, which only get in each other's way.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in processes that tests start

# `nohup` and a shell's `&` have them ignored, which runs keep so; the tests send them.
for _signal, _handler in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _handler)

ROOT = Path(__file__).parent.parent
sys.argv[0] = "cli.py"  # stands for the program in the commands that are printed
# Nor do results depend on the terminal, the build server or the cluster that runs the tests.
for _name in list(os.environ):
    if _name in ("CI", "COLUMNS", "LINES", "NO_COLOR") or _name.startswith(("SLURM_", "PBS_")):
        del os.environ[_name]
os.environ["TERM"] = "xterm"
# A config names classes of the tests as `test_lock.Waits`, also in processes that tests start.
_FOLDERS = [ROOT, *(path for path in (ROOT / "tests").rglob("*") if path.is_dir())]
sys.path += map(str, _FOLDERS)
_GIVEN = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, [ROOT / "tests", *_FOLDERS, *_GIVEN]))


class TinyDataset(torch.utils.data.Dataset):
    """26 samples whose noise comes from all three random generators."""

    def __init__(self, n_samples: int = 26) -> None:
        self.n_samples = n_samples

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        noise = torch.rand(4) + random.random() + float(np.random.rand())
        return {
            "x": torch.full((4,), float(index % 2)) + 0.1 * noise,
            "label": index % 2,
            "i": index,
        }


class TinyData(BaseDataModule):
    def __init__(self, n_samples: int = 26, batch_size: int = 4, n_workers: int = 0) -> None:
        super().__init__(batch_size, n_workers)
        self.n_samples = n_samples

    def create_data(self) -> None:
        self.train_dataset = TinyDataset(self.n_samples)
        self.val_dataset = self.test_dataset = self.predict_dataset = TinyDataset(10)


class TinyModule(BaseModule):
    """Batch norm, dropout and Adam: each has a state that a restart must get right."""

    def __init__(self, learning_rate: float = 1e-2, schedule: str = "none", **kwargs) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        self.pictures: list[tuple[str, int]] = []

    def create_model(self) -> None:
        self.model = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2)
        )

    def create_loss(self) -> None:
        self.loss_fn = nn.CrossEntropyLoss()

    def create_optimiser(self) -> None:
        self.optimiser = torch.optim.Adam(self.model.parameters(), self.hparams.learning_rate)
        schedules = torch.optim.lr_scheduler
        if self.hparams.schedule == "cosine":
            self.scheduler = schedules.CosineAnnealingLR(self.optimiser, self.trainer.max_steps)
        elif self.hparams.schedule == "plateau":
            self.scheduler = schedules.ReduceLROnPlateau(self.optimiser, "max", patience=0)

    def create_metrics(self) -> None:
        accuracy = MulticlassAccuracy(2, average="micro", validate_args=False)
        self.train_metrics, self.val_metrics = accuracy, accuracy.clone()

    def forward_model(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch["x"])

    def forward_loss(self, batch: dict[str, Tensor], output: Tensor) -> Tensor:
        return self.loss_fn(output, batch["label"])

    def visualise(self, batch: dict[str, Tensor], output: Tensor, mode: str) -> None:
        self.pictures.append((mode, self.global_step))


CONFIG = """\
tag: tiny
output_path: {output_path}
model:
  class_path: conftest.TinyModule
data:
  class_path: conftest.TinyData
trainer:
  accelerator: cpu
  max_steps: 23
  val_check_interval: 5
  log_every_n_steps: 4
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config file of the tiny project whose sessions go to tmp_path."""
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.format(output_path=tmp_path / "experiments"))
    return path


@pytest.fixture
def run(config: Path, capfd: pytest.CaptureFixture[str]):
    """Runs the command line in this process: run("fit", ...) -> (exit code, out, err)."""

    def run_(*args: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            main([str(arg) for arg in args])
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capfd.readouterr()
        return code, out, err

    return run_


@pytest.fixture
def sessions(tmp_path: Path):
    """The session folders made so far, oldest first."""
    return lambda: sorted((tmp_path / "experiments").glob("session_*"), key=os.path.getmtime)


@pytest.fixture
def fit(run, config, sessions):
    """Runs `fit` on the tiny config with more options; returns the session it made."""

    def fit_(*options: object) -> Path:
        before = sessions()
        code, _, err = run("fit", "--config", config, *options)
        assert code == 0, err
        [session] = set(sessions()) - set(before)
        return session

    return fit_


def fit_once(folder: Path, *options: str) -> Path:
    file = folder / "tiny.yaml"
    file.write_text(CONFIG.format(output_path=folder / "experiments"))
    main(["fit", "--config", str(file), "--model", "tiny.Echo", *options])
    [session] = (folder / "experiments").iterdir()
    return session


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """The session of a run of 23 iterations. To be read only."""
    return fit_once(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def first_half(tmp_path_factory) -> Path:
    """The session of a run of 11 iterations, whose best one is not the last. To be read only."""
    return fit_once(tmp_path_factory.mktemp("half"), "--trainer.max_steps", "11")


@pytest.fixture
def done(whole, tmp_path) -> Path:
    """A copy of a session that has done all its 23 iterations."""
    return Path(shutil.copytree(whole, tmp_path / "done"))


@pytest.fixture
def half(first_half, tmp_path) -> Path:
    """A copy of a session that has done 11 iterations."""
    return Path(shutil.copytree(first_half, tmp_path / "half"))


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the runs of this process the drawing, which takes longer than they do."""
    monkeypatch.setattr(DrawCurves, "_draw", lambda self: None)


def start_process(*args: object, fork: bool = True, **options: Any) -> subprocess.Popen[str]:
    """Starts `python cli.py` in a process of its own, from the root of the repository.

    Args:
        fork: Whether it is forked, which spares the imports; else Python is started.
    """
    start = ForkedProcess if fork else subprocess.Popen
    return start(
        [sys.executable, "cli.py", *map(str, args)],
        cwd=ROOT,
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def run_process(*args: object, fork: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs it to its end."""
    process = start_process(*args, fork=fork)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def forking_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `verify` fork the runs that it kills."""
    forking = SimpleNamespace(**{**vars(subprocess), "Popen": ForkedProcess})
    monkeypatch.setattr(kills, "subprocess", forking)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "cli.py")])


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores: at times one waits for a disk, a signal or another process."""
    return len(os.sched_getaffinity(0)) + 1 if sys.platform == "linux" else os.cpu_count() or 1


# They start processes, which take their time: begun last, the other workers would wait for them.
_LONG = ("launchers", "readme", "pair", "processes", "recipes", "new", "exact_restart")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in _LONG)


count_frozen = gc.get_freeze_count


def pytest_collection_finish() -> None:
    """Spares the garbage collector what lives as long as the tests: modules, and the tests."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.get_freeze_count = lambda: 1  # each run asks, and counting half a million takes 50 ms


def pytest_sessionfinish() -> None:
    """Lets go of it, as libraries complain of what they find at the end."""
    gc.unfreeze()
    stop_server()
