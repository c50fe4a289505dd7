"""What a device achieves: FLOPs counted by hand, a rate that follows the log line, no other bit."""

import re
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import scripted
import torch
from conftest import TinyModule, run_process
from restarts import Killed, kill_at, result, same
from scripted import PROJECT
from test_progress import events, rows
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

import lightning_trainer
from lightning_trainer.report import flops

FLOPS = "--trainer.callbacks+=lightning_trainer.ReportFlops"

# Of a multiply-add for the outputs, the gradient of the weights, and that of the inputs, which the
# first layer does not need: a convolution of 1 to 3 channels on 2x2 pixels, a linear layer 12 to 2.
CONVOLUTION, LINEAR = 4 * 3 * 1 * 9, 12 * 2
BY_HAND = 2 * (2 * CONVOLUTION + 3 * LINEAR)
COUNTED = f"FLOPs an example: {BY_HAND} in forward and backward\n"


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.dropout, self.linear = nn.Dropout(0.3), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.norm(self.convolution(x.view(-1, 1, 2, 2)))
        return self.linear(self.dropout(maps).flatten(1))


class ConvModule(TinyModule):
    def create_model(self) -> None:
        self.model = Network()


class MatmulSGD(torch.optim.SGD):
    """Has a matrix product in its step, as Muon does."""

    def step(self, closure=None):
        loss = super().step(closure)
        torch.ones(8, 8) @ torch.ones(8, 8)
        return loss


class MuonLikeModule(ConvModule):
    def create_optimiser(self) -> None:
        self.optimiser = MatmulSGD(self.model.parameters(), 1e-2)


graphs = []  # that were compiled


def louder(graph, inputs):
    """A compiler whose results nobody takes for those without it."""
    graphs.append(graph)

    def compiled(*args):
        return tuple(1.5 * out if isinstance(out, Tensor) else out for out in graph.forward(*args))

    return compiled


class CompiledModule(ConvModule):
    """What `compile` does, in milliseconds."""

    def create_model(self) -> None:
        super().create_model()
        self.model.compile(backend=louder)


class WrappedModule(ConvModule):
    def create_model(self) -> None:
        super().create_model()
        self.model = torch.compile(self.model, backend=louder)


class ManualModule(ConvModule):
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int):
        step = super().training_step(batch, batch_idx)
        optimiser = self.optimizers()
        optimiser.zero_grad()
        self.manual_backward(step["loss"])
        optimiser.step()
        return {"loss": step["loss"].detach()}


class CompiledManualModule(ManualModule):
    def create_model(self) -> None:
        super().create_model()
        self.model.compile(backend=louder)


class SkippingModule(ConvModule):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int):
        step = super().training_step(batch, batch_idx)
        return None if self.trainer.fit_loop.total_batch_idx == 0 else step


class FailingModule(ConvModule):
    def forward_loss(self, batch: dict[str, Tensor], output: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("no loss today")
        return super().forward_loss(batch, output)


class CompiledFailingModule(FailingModule):
    def create_model(self) -> None:
        super().create_model()
        self.model.compile(backend=louder)


def model(name: str) -> str:
    return f"--model=test_flops.{name}"


VARIANTS = {
    "plain": [model("ConvModule")],
    "accumulated": [model("ConvModule"), "--trainer.accumulate_grad_batches=3"],
    "mixed": [model("ConvModule"), "--trainer.precision=bf16-mixed"],
    "validated before": [model("ConvModule"), "--trainer.num_sanity_val_steps=2"],
    "optimiser with products": [model("MuonLikeModule")],
    "manual": [model("ManualModule")],
    "compiled": [model("CompiledModule")],
    "compiled, mixed": [model("CompiledModule"), "--trainer.precision=bf16-mixed"],
    "compiled in a wrapper": [model("WrappedModule")],
}


SLOW = ("compiled, mixed", "compiled in a wrapper")


@pytest.mark.long
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(flags, id=name, marks=[pytest.mark.slow] * (name in SLOW))
        for name, flags in VARIANTS.items()
    ],
)
def test_the_count_is_that_by_hand_and_no_bit_of_the_training_changes(run, config, sessions, flags):
    graphs.clear()
    torch._dynamo.reset()
    code, out, err = run("fit", "--config", config, *flags, FLOPS)
    assert code == 0, err
    assert out.count("FLOPs an example") == out.count(COUNTED) == 1
    assert out.count("Achieved: ") == out.count("Fetch data time") > 0
    n_graphs = len(graphs)
    torch._dynamo.reset()
    assert run("fit", "--config", config, *flags)[0] == 0
    with_it, without = map(result, sessions())
    assert same(with_it, without)
    assert len(graphs) == 2 * n_graphs  # the count compiles nothing


@pytest.mark.parametrize("name", ["ConvModule", "CompiledModule"])
def test_a_run_that_goes_on_counts_again_and_is_bitwise_the_same(
    run, config, sessions, monkeypatch, name
):
    flags = (model(name), FLOPS, "--save_minutes=0")
    assert run("fit", "--config", config, *flags)[0] == 0
    kill_at(monkeypatch, "on_train_batch_end", lambda trainer: trainer.global_step == 9)
    with pytest.raises(Killed):
        run("fit", "--config", config, *flags)
    code, out, err = run("fit", "--ckpt_path", sessions()[1])
    assert code == 0, err
    assert out.count(COUNTED) == 1
    assert same(*map(result, sessions()))


class FlopsOfScript(scripted.ScriptedModule):
    """Multiplies 4 x 250 by 250 x 500 at each step: 250,000 FLOPs an example, no gradients."""

    def forward_model(self, batch: dict[str, Tensor]) -> Tensor:
        torch.ones(4, 250) @ torch.ones(250, 500)
        return super().forward_model(batch)


SCRIPTED = (*PROJECT[1:], model("FlopsOfScript"), "--trainer.max_steps=8")


def test_the_line_follows_the_rate_of_the_log_line(run, config, monkeypatch):
    scripted.start(monkeypatch)
    code, out, err = run("fit", "--config", config, *SCRIPTED, FLOPS)
    assert code == 0, err
    # 8 examples/s
    assert (
        re.findall("^(?:Achieved|Fetch).*$", out, re.M)
        == [
            "Fetch data time: 125ms, model update time: 375ms",
            "Achieved: 2e-06 TFLOP/s a device",
        ]
        * 2
    )


def test_where_the_peak_is_known_the_share_of_it_is_told_and_logged(
    run, config, sessions, monkeypatch
):
    scripted.start(monkeypatch)
    monkeypatch.setattr(flops, "_find_peak", lambda *_: 16e-6)
    assert run("fit", "--config", config, *SCRIPTED, FLOPS)[0] == 0
    csv, tensorboard = rows(sessions()[0]), events(sessions()[0])
    for step in (4, 8):
        assert (csv[step]["timing/tflops"], csv[step]["timing/mfu"]) == ("2e-06", "0.125")
        assert tensorboard["timing/mfu"][step] == 0.125
    peak = "{class_path: lightning_trainer.ReportFlops, init_args: {peak_tflops: 8.0e-6}}"
    out = run("fit", "--config", config, *SCRIPTED, f"--trainer.callbacks+={peak}")[1]
    assert out.count("Achieved: 2e-06 TFLOP/s a device (MFU 25.0% of 8e-06 TFLOP/s)\n") == 2


def trainer_on(device: str, precision: str) -> SimpleNamespace:
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(precision=precision, strategy=strategy, is_global_zero=True)


@pytest.fixture
def h100(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")


LINEAR_NET, CONVOLUTIONAL_NET = nn.Linear(1, 1), nn.Sequential(nn.Flatten(), nn.Conv2d(1, 1, 1))


@pytest.mark.parametrize(
    ("precision", "tf32", "net", "peak"),
    [
        ("bf16-mixed", (False, False), LINEAR_NET, 989.4),
        ("32-true", (False, False), CONVOLUTIONAL_NET, 66.9),
        ("32-true", (False, True), LINEAR_NET, 66.9),
        ("32-true", (False, True), CONVOLUTIONAL_NET, 494.7),
        ("32-true", (True, False), LINEAR_NET, 494.7),
    ],
)
def test_the_peak_is_that_of_how_the_model_computes(monkeypatch, h100, precision, tf32, net, peak):
    monkeypatch.setattr(flops, "uses_tf32", lambda: tf32)
    assert flops._find_peak(trainer_on("cuda:0", precision), net) == peak


def test_an_unknown_peak_is_asked_for_on_a_gpu_only(h100, capsys):
    assert flops._find_peak(trainer_on("cpu", "32-true"), LINEAR_NET) is None
    assert flops._find_peak(trainer_on("cuda:0", "transformer-engine"), LINEAR_NET) is None
    assert capsys.readouterr().out == (
        "MFU: the peak of NVIDIA H100 80GB HBM3 at transformer-engine is not known: "
        "give `peak_tflops`\n"
    )


@pytest.mark.long
def test_each_of_several_devices_has_its_own_rate(config):
    done = run_process(
        "fit", "--config", config, FLOPS, "--trainer.devices=2", "--data.n_samples=28"
    )
    assert done.returncode == 0, done.stderr
    # TinyModule: linear layers of 4 to 8 and 8 to 2
    n_flops = 2 * (2 * 4 * 8 + 3 * 8 * 2)
    assert done.stdout.count(f"FLOPs an example: {n_flops} in forward and backward\n") == 1
    rates = [float(rate) for rate in re.findall(r"examples/s: (\S+)", done.stdout)]
    achieved = [float(rate) for rate in re.findall(r"Achieved: (\S+) TFLOP/s", done.stdout)]
    assert achieved == pytest.approx([rate * n_flops / 2 / 1e12 for rate in rates], rel=0.01)


def test_a_batch_that_the_project_skips_is_not_the_one_that_is_counted(run, config):
    out = run("fit", "--config", config, model("SkippingModule"), FLOPS)[1]
    assert out.count(COUNTED) == 1


def test_what_can_not_be_counted_is_said(run, config):
    code, out, err = run("fit", "--config", config, model("CompiledManualModule"), FLOPS)
    assert code == 0, err
    assert out.count("FLOPs an example: could not count\n") == 1
    assert "Achieved" not in out


@pytest.mark.parametrize("name", ["FailingModule", "CompiledFailingModule"])
def test_a_first_step_that_fails_leaves_nothing_behind(run, config, name):
    code, _, err = run("fit", "--config", config, model(name), FLOPS)
    assert (code, "no loss today" in err) == (1, True)
    assert _get_current_dispatch_mode() is None
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_after_the_first_batch_one_hook_is_left(run, config, monkeypatch):
    calls = []
    original = lightning_trainer.ReportFlops.on_train_batch_end

    def noted(self, *args) -> None:
        original(self, *args)
        hooks = [name for name in vars(type(self)) if "_batch_" in name or "backward" in name]
        calls.append([name for name in hooks if callable(getattr(self, name))])
        assert _get_current_dispatch_mode() is None

    monkeypatch.setattr(lightning_trainer.ReportFlops, "on_train_batch_end", noted)
    assert run("fit", "--config", config, FLOPS)[0] == 0
    assert calls == [["on_train_batch_end"]] * 23


def test_a_peak_that_is_no_positive_number_is_refused():
    with pytest.raises(ValueError, match="`peak_tflops` is 0"):
        lightning_trainer.ReportFlops(peak_tflops=0)


def test_without_the_log_line_it_says_what_it_needs():
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(TypeError, match="`ReportFlops` needs a run of the command line"):
        lightning_trainer.ReportFlops().on_train_start(trainer, None)
