"""What is known of a GPU, told by a faked one."""

from types import SimpleNamespace

import pytest
import torch

from lightning_trainer.run.device import describe_gpus, settle, uses_tf32
from lightning_trainer.run.state import RunState
from lightning_trainer.session import environment
from lightning_trainer.session.folder import Session


def trainer_on(device: str, *indices: int) -> SimpleNamespace:
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(strategy=strategy, device_ids=list(indices))


@pytest.fixture
def cards(monkeypatch, tmp_path):
    """Four cards, of which the driver tells its version."""
    tmp_path.joinpath("version").write_text("580.95.05\n")
    monkeypatch.setattr(environment, "_DRIVER", tmp_path / "version")
    names = ["A", "B", "B", "A"]
    monkeypatch.setattr(torch.cuda, "get_device_name", names.__getitem__)


def test_only_the_gpus_of_the_run_are_described(cards):
    described = describe_gpus(trainer_on("cuda:1", 1, 3))
    assert described["gpus"] == ["B, 580.95.05", "A, 580.95.05"]
    libraries = described["gpu_libraries"]
    assert libraries["cuda"] == torch.version.cuda
    assert libraries["cudnn"] == torch.backends.cudnn.version()
    assert (libraries["nccl"] is not None) == torch.distributed.is_nccl_available()
    assert described["gpu_kernels"] == {
        "matmul_tf32": False,
        "convolution_tf32": True,
        "cudnn_benchmark": False,
        "deterministic": False,
    }


def test_a_driver_that_tells_no_version_is_left_out(cards, monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "_DRIVER", tmp_path / "missing")
    assert describe_gpus(trainer_on("cuda:0", 0))["gpus"] == ["A"]


def test_a_run_on_the_cpu_has_no_gpus_and_nothing_to_wait_for(cards):
    run = RunState(Session())
    settle(trainer_on("cpu"), run)
    assert (describe_gpus(trainer_on("cpu", 0)), run.settled_s) == ({"gpus": []}, 0.0)


def test_tf32_is_told_apart_for_products_and_convolutions(monkeypatch):
    assert uses_tf32() == (False, True)  # torch's own choice
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert uses_tf32() == (False, False)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert uses_tf32() == (True, False)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
def test_a_real_gpu_is_described_and_waited_for():
    trainer, run = trainer_on("cuda:0", 0), RunState(Session())
    described = describe_gpus(trainer)
    assert described["gpus"][0].startswith(torch.cuda.get_device_name(0))
    assert all(described["gpu_libraries"].values())
    square = torch.ones(8192, 8192, device="cuda")
    for _ in range(10):
        square @ square
    settle(trainer, run)
    assert torch.cuda.current_stream().query()
    assert run.settled_s > 0
