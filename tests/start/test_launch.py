"""What the launchers tell a process about the others."""

import pytest
import torch

from lightning_trainer.start.launch import n_processes


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with 4 GPUs, and no launcher."""
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.parametrize(
    ("devices", "n"),
    [
        *[(1, 1), (3, 3), ("2", 2), (" 2 ", 2)],
        *[([0], 1), ([0, 3], 2), ("0,3", 2), ("2,", 1), ("0, 1, 2", 3)],
        *[("auto", 4), (-1, 4), ("-1", 4)],
    ],
)
def test_the_processes_are_counted_as_lightning_counts_devices(devices, n):
    trainer = {"devices": devices, "num_nodes": 1, "accelerator": "auto"}
    assert n_processes(trainer) == n
    assert n_processes({**trainer, "accelerator": "gpu", "num_nodes": 2}) == 2 * n


def test_without_a_gpu_auto_is_one_process(monkeypatch):
    trainer = {"devices": "auto", "num_nodes": 1, "accelerator": "cpu"}
    assert n_processes(trainer) == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert n_processes({**trainer, "accelerator": "auto"}) == 1


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_NTASKS"])
def test_a_launcher_knows_better(monkeypatch, variable):
    monkeypatch.setenv(variable, "8")
    assert n_processes({"devices": 2, "num_nodes": 1, "accelerator": "auto"}) == 8


@pytest.mark.parametrize("devices", ["all", None])
def test_what_lightning_will_refuse_is_left_to_it(devices):
    assert n_processes({"devices": devices, "num_nodes": 1, "accelerator": "cpu"}) == 1
