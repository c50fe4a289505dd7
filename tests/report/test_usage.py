"""What a run has used: memory, and how busy a GPU was, in summary, record and TensorBoard."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_trainer.report import usage
from lightning_trainer.report.usage import MeasureUse, describe_use, peak_memory
from lightning_trainer.run.state import RunState
from lightning_trainer.session.folder import Session


def test_memory_is_in_the_summary_the_record_and_tensorboard(run, config, sessions):
    code, out, err = run("fit", "--config", config, "--trainer.max_steps=10")
    assert code == 0, err
    told = float(re.search(r"^Memory: +(\S+) GB$", out, re.M)[1])
    [session] = sessions()
    used = json.loads((session / "run.json").read_text())["used"]
    assert used.keys() == {"memory_gb"}
    assert told == pytest.approx(used["memory_gb"], abs=0.05)
    events = EventAccumulator(str(session))
    events.Reload()
    points = events.Scalars("usage/memory_gb")
    assert [point.step for point in points] == [5, 10]
    assert 0.1 < points[0].value <= points[1].value <= used["memory_gb"] + 1e-3


def test_the_peak_is_that_of_the_process():
    before = peak_memory()
    block = torch.ones(25_000_000)  # 100 MB
    assert peak_memory() >= before
    assert peak_memory() > block.nbytes


class RefusesError(Exception):
    pass


@pytest.fixture
def nvidia(monkeypatch):
    """NVIDIA's library, torch and a GPU, as stand-ins."""
    library = SimpleNamespace(
        NVMLError=RefusesError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=next(percents)),
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(energies),
    )
    percents, energies = iter([80, 90]), iter([1e6, 1e6 + 7.2e6, 1e6 + 7.2e6])  # in mJ
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(usage, "on_gpu", lambda trainer: True)
    properties = SimpleNamespace(uuid="a-b")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3_400_000_000)
    return library


def used_by_a_run(tmp_path) -> dict[str, float]:
    run = RunState(Session(tmp_path))
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cuda", 0)),
        state=SimpleNamespace(fn="fit"),
        sanity_checking=False,
        is_global_zero=True,
        loggers=[],
        global_step=5,
    )
    callback = MeasureUse(run)
    callback.on_train_start(trainer)
    for _ in range(2):
        callback.on_validation_start(trainer)
    callback.on_train_end(trainer)
    return {**run.used}


def test_a_gpu_is_told_with_what_it_did(tmp_path, nvidia):
    used = used_by_a_run(tmp_path)
    used["memory_gb"] = 1.24
    assert used == {"memory_gb": 1.24, "gpu_memory_gb": 3.4, "gpu_percent": 85, "gpu_kwh": 0.002}
    assert describe_use(used) == "1.2 GB, GPU 3.4 GB (85% busy, 0.002 kWh)"


def test_without_nvidias_library_the_memory_alone_is_told(tmp_path, nvidia, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    used = used_by_a_run(tmp_path)
    assert used.keys() == {"memory_gb", "gpu_memory_gb"}
    assert describe_use({**used, "memory_gb": 2.0}) == "2.0 GB, GPU 3.4 GB"


@pytest.mark.parametrize("answers", [(), (1e6,), (None, 1e6)])
def test_a_gpu_that_does_not_count_its_energy_is_told_without(tmp_path, nvidia, answers):
    """Neither at the start nor at the end alone: the counter is that of the driver's whole time."""
    left = iter(answers)

    def answer(handle):
        if (energy := next(left, None)) is None:
            raise RefusesError
        return energy

    nvidia.nvmlDeviceGetTotalEnergyConsumption = answer
    assert "gpu_kwh" not in used_by_a_run(tmp_path)
