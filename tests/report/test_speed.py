"""The line that says which settings for speed are on."""

from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from conftest import TinyModule
from torch.optim import Adam, RMSprop

from lightning_trainer.report.summary import Summarise
from lightning_trainer.run.state import RunState
from lightning_trainer.session.folder import Session
from lightning_trainer.start.given_back import keep_process


def started(
    device: str, *optimisers: torch.optim.Optimizer, first: bool = True, cls=TinyModule, **options
) -> None:
    """Starts a training that is on a device, as far as one can tell."""
    module = cls(**options)
    module.configure_model()
    strategy = SimpleNamespace(root_device=torch.device(device))
    trainer = SimpleNamespace(is_global_zero=first, strategy=strategy, optimizers=optimisers)
    Summarise(RunState(Session())).on_train_start(trainer, module)


WEIGHTS = [torch.zeros(1, requires_grad=True)]


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_on_a_device_it_names_what_torch_was_told(capsys, device):
    with ExitStack() as stack:
        keep_process(stack)
        started(device, Adam(WEIGHTS))
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        both = (Adam(WEIGHTS, fused=True), RMSprop(WEIGHTS))
        started(device, *both, compile="max-autotune")
        started(device, *both, compile=True, first=False)
    assert capsys.readouterr().out == (
        "Parameters: 74 (trainable: 74)\n"
        "Speed: matmul_precision highest, benchmark off, unfused Adam, compile off\n"
        "Parameters: 74 (trainable: 74)\n"
        "Speed: matmul_precision high, benchmark on, fused Adam, unfused RMSprop, "
        "compile max-autotune\n"
    )


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch 2.9 brought the flag"
)
def test_a_newer_flag_of_torch_is_told_as_it_was_set(capsys):
    with ExitStack() as stack:
        keep_process(stack)
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        started("cuda")
    assert "Speed: matmul_precision tf32, " in capsys.readouterr().out


def test_a_model_that_the_project_compiles_counts(capsys):
    class Compiled(TinyModule):
        def create_model(self) -> None:
            super().create_model()
            self.model[0].compile()

    started("cuda", cls=Compiled)
    assert capsys.readouterr().out.endswith("benchmark off, compile on\n")


def test_on_the_cpu_there_is_no_such_line(capsys):
    started("cpu", Adam(WEIGHTS))
    assert capsys.readouterr().out == "Parameters: 74 (trainable: 74)\n"
