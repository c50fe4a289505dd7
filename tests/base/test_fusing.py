"""Fused optimisers: which become so, and what a checkpoint makes of them.

CUDA is feigned here: torch's fused steps for the CPU stand for those.
"""

import lightning.pytorch as pl
import pytest
import torch
from conftest import TinyModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from restarts import Killed, kill_at, result, same
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop

from lightning_trainer.base import fusing


class OwnAdam(Adam):
    pass


class Clips(TinyModule):
    def configure_gradient_clipping(self, *args, **kwargs) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)


class Looks(TinyModule):
    def on_before_optimizer_step(self, optimizer) -> None:
        pass


class Watches(Callback):
    def on_before_optimizer_step(self, *args) -> None:
        pass


@pytest.fixture
def on_cuda(monkeypatch):
    monkeypatch.setattr(fusing, "is_on_cuda", lambda weight: True)


def made(module: TinyModule, optimiser: torch.optim.Optimizer, allowed: bool = True, **options):
    """The optimiser, after a module of a trainer with these options has looked at it."""
    quiet = {"logger": False, "enable_checkpointing": False}
    trainer = pl.Trainer(accelerator="cpu", **quiet, **options)
    module.trainer = trainer
    fusing.fuse(module, optimiser, allowed)
    return optimiser


def tiny(cls: type[TinyModule] = TinyModule) -> TinyModule:
    module = cls()
    module.configure_model()
    return module


def fused_in(session) -> list:
    checkpoint = torch.load(session / "checkpoints/last.ckpt")
    return [group["fused"] for group in checkpoint["optimizer_states"][0]["param_groups"]]


# Which become fused -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Adam, AdamW, SGD])
def test_each_group_of_an_optimiser_that_knows_how_becomes_fused(on_cuda, kind):
    module = tiny()
    weights = list(module.model.parameters())
    optimiser = made(module, kind([{"params": weights[:2]}, {"params": weights[2:]}], lr=0.1))
    assert [group["fused"] for group in optimiser.param_groups] == [True, True]
    assert fusing.is_fused(optimiser)


@pytest.mark.parametrize("kind", [Adam, AdamW, SGD])
def test_on_the_cpu_none_becomes_fused(kind):
    module = tiny()
    optimiser = made(module, kind(module.parameters(), lr=0.1))
    assert [group["fused"] for group in optimiser.param_groups] == [None]


@pytest.mark.parametrize(
    "make",
    [
        lambda weights: OwnAdam(weights),
        lambda weights: RMSprop(weights),
        lambda weights: Adam(weights, foreach=True),
        lambda weights: Adam(weights, foreach=False),
        lambda weights: Adam(weights, fused=False),
        lambda weights: Adam([{"params": weights[:1], "fused": False}, {"params": weights[1:]}]),
        lambda weights: Adam(weights, capturable=True),
        lambda weights: Adam(weights, differentiable=True),
        lambda weights: Adam([*weights, nn.Parameter(torch.zeros(2, dtype=torch.complex64))]),
    ],
)
def test_what_torch_or_the_project_excludes_stays_as_it_is(on_cuda, make):
    module = tiny()
    optimiser = make(list(module.model.parameters()))
    before = [group.get("fused") for group in optimiser.param_groups]
    made(module, optimiser)
    assert [group.get("fused") for group in optimiser.param_groups] == before
    assert not fusing.is_fused(optimiser)


def test_sparse_gradients_and_a_key_keep_an_optimiser_from_being_fused(on_cuda):
    module = tiny()
    assert not fusing.is_fused(made(module, SGD(module.parameters(), lr=0.1), allowed=False))
    module.model.append(nn.Embedding(3, 2, sparse=True))
    assert not fusing.is_fused(made(module, SGD(module.parameters(), lr=0.1)))


# With a GradScaler ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options", "fused"),
    [
        (TinyModule, {}, True),
        (TinyModule, {"gradient_clip_val": 1.0}, False),
        (TinyModule, {"callbacks": [Watches()]}, False),
        (Clips, {}, False),
        (Looks, {}, False),
    ],
)
def test_with_16_mixed_one_is_fused_where_nothing_reads_the_gradients(on_cuda, cls, options, fused):
    module = tiny(cls)
    amp = {"plugins": MixedPrecision("16-mixed", "cpu")}
    assert fusing.is_fused(made(module, Adam(module.parameters()), **amp, **options)) == fused
    assert fusing.is_fused(made(module, Adam(module.parameters()), **options))


def test_a_fused_step_skips_infinite_gradients_without_asking_for_them(on_cuda, monkeypatch):
    module, scaler = tiny(), torch.amp.GradScaler("cpu")
    mixed = MixedPrecision("16-mixed", "cpu", scaler)
    optimiser = made(module, Adam(module.parameters()), plugins=[mixed])
    unfused = Adam(module.parameters()).state_dict()
    asked = []
    monkeypatch.setattr(scaler, "_maybe_opt_step", lambda *args, **kwargs: asked.append(args))

    def step(loss: torch.Tensor) -> bool:
        """Whether a step changes the weights."""
        before = [weight.clone() for weight in module.parameters()]
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        return not same(before, list(module.parameters()))

    batch = torch.randn(5, 4)
    assert not step(module.model(batch).sum() * torch.inf)
    assert step(module.model(batch).sum())
    assert not asked
    optimiser.load_state_dict(unfused)
    step(module.model(batch).sum())
    assert len(asked) == 1


# Going on ---------------------------------------------------------------------------------------


def killed_and_gone_on(run, config, sessions, monkeypatch, *options, between=lambda: None):
    """A whole run, and one that was killed at iteration 8 and has gone on."""
    assert run("fit", "--config", config)[0] == 0
    kill_at(monkeypatch, "on_train_batch_end", lambda trainer: trainer.global_step == 8)
    with pytest.raises(Killed):
        run("fit", "--config", config, "--save_minutes=0")
    between()
    code, out, err = run("fit", "--ckpt_path", sessions()[1], *options)
    assert code == 0, err
    return (*sessions(), out)


def test_a_fused_run_goes_on_fused_and_bitwise(run, config, sessions, monkeypatch, on_cuda):
    whole, restarted, out = killed_and_gone_on(run, config, sessions, monkeypatch)
    assert fused_in(whole) == fused_in(restarted) == [True]
    assert same(result(restarted), result(whole))
    assert "Changed optimiser settings" not in out


def test_a_run_that_was_not_fused_goes_on_bitwise_where_it_could_be(
    run, config, sessions, monkeypatch
):
    def move() -> None:
        monkeypatch.setattr(fusing, "is_on_cuda", lambda weight: True)

    whole, restarted, out = killed_and_gone_on(run, config, sessions, monkeypatch, between=move)
    assert fused_in(whole) == fused_in(restarted) == [None]
    assert same(result(restarted), result(whole))
    assert "Changed optimiser settings" not in out


@pytest.mark.parametrize("owner", ["layer", "project"])
def test_without_a_scaler_a_fused_optimiser_lets_gradients_be_clipped(on_cuda, owner):
    module = tiny()
    fused = {"fused": True} if owner == "project" else {}
    optimiser = made(
        module, Adam(module.parameters(), **fused), precision="bf16-mixed", gradient_clip_val=0.1
    )
    assert fusing.is_fused(optimiser)
    for weight in module.parameters():
        weight.grad = torch.ones_like(weight)
    module.clip_gradients(optimiser, 0.1, "norm")
    norm = torch.stack([weight.grad.norm() for weight in module.parameters()]).norm()
    assert norm.item() == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("options", [(), ("--model.fused=false",)])
def test_a_fused_run_goes_on_without_where_it_can_not_be(
    run, config, sessions, monkeypatch, options
):
    monkeypatch.setattr(fusing, "is_on_cuda", lambda weight: True)
    assert run("fit", "--config", config, "--trainer.max_steps=8")[0] == 0
    assert fused_in(sessions()[0]) == [True]
    monkeypatch.setattr(fusing, "is_on_cuda", lambda weight: bool(options))
    code, out, err = run("fit", "--ckpt_path", sessions()[0], "--trainer.max_steps=23", *options)
    assert code == 0, err
    assert fused_in(sessions()[0]) == [None]
    assert "Changed optimiser settings" not in out
    steps = torch.load(sessions()[0] / "checkpoints/last.ckpt")["optimizer_states"][0]["state"]
    assert {state["step"].item() for state in steps.values()} == {23}


def test_a_changed_learning_rate_leaves_a_run_fused(run, config, sessions, monkeypatch, on_cuda):
    change = "--model.learning_rate=0.5"
    _, restarted, out = killed_and_gone_on(run, config, sessions, monkeypatch, change)
    assert "    groups.0.lr: 0.01 -> 0.5\n" in out
    assert "fused:" not in out
    assert fused_in(restarted) == [True]


def test_an_own_fused_setting_of_an_older_session_is_no_change(run, config, sessions, monkeypatch):
    def create_optimiser(self) -> None:
        self.optimiser = Adam(self.model.parameters(), 1e-2, fused=True)

    monkeypatch.setattr(TinyModule, "create_optimiser", create_optimiser)
    assert run("fit", "--config", config, "--trainer.max_steps=8")[0] == 0
    for path in sessions()[0].glob("checkpoints/*.ckpt"):
        checkpoint = torch.load(path)
        checkpoint["lightning_trainer"]["optimiser"]["groups"]["0"]["fused"] = True
        torch.save(checkpoint, path)
    code, out, err = run("fit", "--ckpt_path", sessions()[0], "--trainer.max_steps=12")
    assert code == 0, err
    assert "Changed optimiser settings" not in out
    assert fused_in(sessions()[0]) == [True]


@pytest.mark.gpu
def test_on_a_gpu_a_fused_run_goes_on_bitwise_and_on_a_cpu_without(
    run, config, sessions, monkeypatch
):
    config.write_text(config.read_text().replace("accelerator: cpu", "accelerator: gpu"))
    whole, restarted, out = killed_and_gone_on(run, config, sessions, monkeypatch)
    assert "fused Adam" in out
    assert fused_in(whole) == fused_in(restarted) == [True]
    assert same(result(restarted), result(whole))
    more = ("--trainer.accelerator=cpu", "--trainer.max_steps=30")
    code, _, err = run("fit", "--ckpt_path", whole, *more)
    assert code == 0, err
    assert fused_in(whole) == [None]
