"""What a step costs, in counts that are the same on every machine: a guard against creeping cost.

Each count is the difference between two runs of different length, so that only what every step does
is in it. Where one of these fails after a change, either the change should cost less or its cost is
worth a higher number here.
"""

import gc
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from conftest import ROOT, TinyDataset, TinyModule, run_process
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, default_collate

from lightning_trainer.session import terminal

PACKAGE = str(ROOT / "lightning_trainer")
SHORT, LONG = 30, 130
QUIET = (
    "--trainer.log_every_n_steps=1000",
    "--trainer.val_check_interval=1000",
    "--model=test_costs.PlainModule",
    "--data.n_samples=1000",
)


class PlainModule(TinyModule):
    """An optimiser that reads nothing back from the device."""

    def create_optimiser(self) -> None:
        self.optimiser = torch.optim.SGD(self.model.parameters(), 1e-2)


class CountOperators(TorchDispatchMode):
    """The operators that torch executes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def each_step(run, config):
    """A step's part of what `start` begins to count and `read` tells."""

    def each_step_(start, read) -> Counter[str]:
        totals = []
        for n_steps in (SHORT, SHORT, LONG):  # the first run of all imports and caches
            gc.collect()  # of earlier runs: the end of a generator counts as a call
            start()
            code, _, err = run("fit", "--config", config, *QUIET, f"--trainer.max_steps={n_steps}")
            gc.collect()
            totals.append(Counter(read()))
            assert code == 0, err
        totals[2].subtract(totals[1])
        return Counter({k: n / (LONG - SHORT) for k, n in totals[2].items() if n})

    return each_step_


@pytest.mark.skipif(sys.version_info < (3, 11), reason="code does not know its class there")
def test_calls_of_the_layers_own_functions(each_step):
    counts: Counter[str] = Counter()

    def count(frame, event, arg) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            counts[f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_qualname}"] += 1

    def start() -> None:
        counts.clear()
        sys.setprofile(count)

    def read() -> Counter[str]:
        sys.setprofile(None)
        return counts.copy()

    calls = each_step(start, read)
    assert calls.pop("internals_of_updates.DirectHooks.of_module") == 8
    assert calls.pop("internals_of_updates.DirectHooks.of_callbacks") == 6
    of_samples = {
        name: calls.pop(name)
        for name in (
            "sampling.derive_seed",
            "sampling.<lambda>",  # numpy's generator, from which these samples draw
            "sampling.ExactSampler.__iter__",
            "internals_of_updates._is_flat.<locals>.<genexpr>",
        )
    }
    assert sum(of_samples.values()) <= 4 * 4 + 2
    assert max(calls.values()) <= 3
    assert calls.total() <= 57, calls


@pytest.mark.long
def test_calls_of_a_step_by_whoever_beside_a_plain_loop(each_step):
    """Nothing of Lightning's own loop is among them: with it there would be 700 more."""
    counts: Counter[str] = Counter()

    def count(frame, event, arg) -> None:
        counts["calls"] += event == "call"

    def start() -> None:
        counts.clear()
        sys.setprofile(count)

    def read() -> Counter[str]:
        sys.setprofile(None)
        return counts.copy()

    with_layer = each_step(start, read)["calls"]
    plain = []
    for n_steps in (SHORT, SHORT, LONG):
        steps = plain_steps(n_steps)
        start()
        steps()
        plain.append(read()["calls"])
    assert with_layer - (plain[2] - plain[1]) / (LONG - SHORT) <= 160


def plain_steps(n_steps: int) -> Callable[[], None]:
    """What people write: a loader, a network, an optimiser and a metric."""
    module = PlainModule()
    for name in ("model", "loss", "optimiser", "metrics"):
        getattr(module, f"create_{name}")()
    loader = DataLoader(TinyDataset(4 * n_steps), 4, shuffle=True)

    def steps() -> None:
        for batch in loader:
            output = module.model(batch["x"])
            loss = module.loss_fn(output, batch["label"])
            module.optimiser.zero_grad()
            loss.backward()
            module.optimiser.step()
            module.train_metrics.update(output.detach(), batch["label"])

    return steps


def test_operators_of_torch(each_step):
    """The layer adds one addition, of the loss, and nothing that waits for the device."""
    modes = []

    def start() -> None:
        modes.append(CountOperators().__enter__())

    def read() -> Counter[str]:
        mode = modes.pop()
        mode.__exit__(None, None, None)
        return mode.counts

    operators = each_step(start, read)
    operators.subtract(operators_of_plain_loop())
    assert {name: n for name, n in operators.items() if n} == {
        "add_": 1,
        "clone": 1,  # of the loss, as Lightning hands it on
        "detach": 1,
        "_record_function_enter_new": 1,  # of the loader
        "_record_function_exit": 1,
    }


def operators_of_plain_loop() -> Counter[str]:
    """Of one step: samples, batch, network, loss, metric, optimiser."""
    module, dataset = PlainModule(), TinyDataset()
    for name in ("model", "loss", "optimiser", "metrics"):
        getattr(module, f"create_{name}")()
    with CountOperators() as mode:
        batch = default_collate([dataset[i] for i in range(4)])
        output = module.forward_model(batch)
        loss = module.forward_loss(batch, output)
        module.optimiser.zero_grad()
        loss.backward()
        module.optimiser.step()
        module.update_metrics(module.train_metrics, batch, output.detach())
    return mode.counts


def test_files_opened_and_system_calls_that_write(each_step, monkeypatch):
    # The log's helper, whose writes count as well, gets what is printed in pieces of any number.
    monkeypatch.setattr(terminal, "is_past_descriptors", lambda stream: False)
    opened: Counter[str] = Counter()
    counting = [False]

    def note(event: str, args: tuple) -> None:
        if counting[0] and event == "open":
            opened["files"] += 1

    sys.addaudithook(note)

    def start() -> None:
        opened.clear()
        counting[0] = True
        opened["writes"] = -writes()

    def writes() -> int:
        io = Path("/proc/self/io").read_text().split()
        return int(io[io.index("syscw:") + 1])

    def read() -> Counter[str]:
        counting[0] = False
        opened["writes"] += writes()
        return opened.copy()

    assert not each_step(start, read)


class TellBlocks(Callback):
    """Prints how many blocks of memory Python has taken at two steps that are far apart."""

    # At the same place in their epochs of 250, after the pools of Python and torch have filled.
    steps = 1030, 2030

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        if trainer.global_step in self.steps:
            gc.collect()
            print("blocks", sys.getallocatedblocks())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps(config):
    """In a process of its own: threads that other tests have left allocate too."""
    ended = run_process(
        *("fit", "--config", config, *QUIET, "--trainer.max_steps=2040"),
        *("--trainer.callbacks+=test_costs.TellBlocks", "--trainer.val_check_interval=2040"),
    )
    first, last = (int(count) for count in re.findall(r"^blocks (\d+)$", ended.stdout, re.M))
    assert last - first < (TellBlocks.steps[1] - TellBlocks.steps[0]) / 2


def test_a_profiler_that_is_asked_for_sees_the_hooks(run, config, tmp_path):
    arguments = f"init_args: {{dirpath: {tmp_path}, filename: p}}"
    profiler = f"{{class_path: lightning.pytorch.profilers.SimpleProfiler, {arguments}}}"
    code, _, err = run("fit", "--config", config, f"--trainer.profiler={profiler}")
    assert code == 0, err
    assert "PrintProgress.on_train_batch_end" in (tmp_path / "fit-p.txt").read_text()


def test_a_profiler_writes_into_the_session_folder(run, config, sessions):
    assert run("fit", "--config", config, "--trainer.profiler=simple")[0] == 0
    assert "PrintProgress.on_train_batch_end" in (sessions()[0] / "fit-profile.txt").read_text()


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="has a GPU")
def test_without_a_gpu_a_run_asks_for_none_in_each_step(run, config, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    asked = []
    monkeypatch.setattr(torch.cuda, "_raw_device_count_nvml", lambda: asked.append(1) or -1)
    assert run("fit", "--config", config)[0] == 0
    assert len(asked) < 23
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
