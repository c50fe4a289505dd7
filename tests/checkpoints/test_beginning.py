import pytest
import torch
from conftest import TinyModule, run_process
from lightning.pytorch.callbacks import Callback
from tiny import logged, same, settings, weights
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from lightning_trainer.checkpoints.beginning import take_weights

STRATEGIES = "lightning.pytorch.strategies"
SHORT = ("--trainer.max_steps", 2, "--trainer.val_check_interval", 1)


class OtherHead(TinyModule):
    """Has a backbone, which Lightning's callback freezes, and three classes."""

    def create_model(self) -> None:
        super().create_model()
        self.model[4] = nn.Linear(8, 3)

    @property
    def backbone(self) -> nn.Module:
        return self.model[:4]

    def create_optimiser(self) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(trained, self.hparams.learning_rate)


class OwnSetup(TinyModule):
    """Needs its own `setup` before `create_model`, and counts the calls."""

    calls: tuple = ()

    def setup(self, stage: str) -> None:
        self.width, OwnSetup.calls = 8, (*OwnSetup.calls, stage)

    def configure_model(self) -> None:
        super().configure_model()
        OwnSetup.calls = (*OwnSetup.calls, self.width)


class Looks(Callback):
    """Looks at the model where Lightning has made none."""

    seen: dict

    def setup(self, trainer, pl_module, stage):
        Looks.seen = {name: t.clone() for name, t in pl_module.state_dict().items()}


def test_a_run_begins_with_the_weights_of_a_session_and_nothing_else(run, config, half, sessions):
    before = {path: path.stat().st_mtime_ns for path in half.rglob("*")}
    code, out, err = run(
        *("fit", "--config", config, "--init_from", half, *SHORT),
        *("--trainer.limit_val_batches", 0, "--model.learning_rate", 0),
    )
    assert code == 0, err
    best = half / "checkpoints/best.ckpt"
    assert f"Weights: 9 of the model's 9 tensors are taken from {best}\n" in out
    [session] = sessions()
    begun, there = weights(session), weights(half, "best")
    parameters = [name for name in begun if "running" not in name and "num" not in name]
    assert all(torch.equal(begun[name], there[name]) for name in parameters)
    checkpoint = torch.load(session / "checkpoints/last.ckpt")
    assert checkpoint["global_step"] == 2 and checkpoint["lightning_trainer"]["best"] is None
    assert settings(session)["init_from"] == str(half)
    assert before == {path: path.stat().st_mtime_ns for path in half.rglob("*")}


def test_another_head_stays_as_it_was_made_and_the_backbone_is_frozen(run, config, half, sessions):
    kind = "lightning.pytorch.callbacks.BackboneFinetuning"
    code, out, err = run(
        *("fit", "--config", config, "--model", "test_beginning.OtherHead", *SHORT),
        *("--init_from", half / "checkpoints/last.ckpt", "--trainer.callbacks+", kind),
    )
    assert code == 0, err
    assert "Weights: 7 of the model's 9 tensors are taken from" in out
    shapes = "model.4.weight is (2, 8) there, (3, 8) here, model.4.bias is (2,) there, (3,) here\n"
    assert f"    Of another shape, left as made: {shapes}" in out
    assert "trainable: 43)" in out  # batch norms stay trainable, as Lightning has it
    [session] = sessions()
    assert torch.equal(weights(session)["model.0.weight"], weights(half)["model.0.weight"])


def test_a_run_that_goes_on_does_not_begin_again(run, config, half, sessions, tmp_path):
    other = tmp_path / "plain.pt"
    torch.save({n.removeprefix("model."): t for n, t in weights(half).items()}, other)
    config.write_text(f"{config.read_text()}init_from: {other}\n")
    code, out, err = run("fit", "--config", config, *SHORT)
    assert code == 0 and "Weights: 9 of the model's 9" in out, err
    [session] = sessions()
    other.unlink()
    code, out, err = run("fit", "--ckpt_path", session, "--trainer.max_steps", 4)
    assert code == 0 and "Weights: " not in out, err
    assert settings(session)["init_from"] == str(other)
    code, out, err = run("test", "--ckpt_path", session)
    assert code == 0 and "Weights: " not in out, err
    code, out, err = run("fit", "--config", session / "config.yaml", "--ckpt_path", session)
    assert code == 2 and "nothing left to do" in err, err


def test_begun_as_one_run_and_stopped_between_is_the_same(fit, run, half):
    options = ("--init_from", half, "--model", "tiny.Echo")
    whole = fit(*options, "--trainer.max_steps", 9)
    stopped = fit(*options, "--trainer.max_steps", 4)
    assert run("fit", "--ckpt_path", stopped, "--trainer.max_steps", 9)[0] == 0
    assert same(weights(whole), weights(stopped))
    assert logged(whole, "val/loss").items() <= logged(stopped, "val/loss").items()


def test_a_test_takes_weights_as_well(run, config, half):
    code, out, _ = run("test", "--ckpt_path", half)
    score = [line for line in out.splitlines() if line.startswith("Test ")]
    code, out, err = run("test", "--config", config, "--init_from", half)
    assert code == 0, err
    assert score == [line for line in out.splitlines() if line.startswith("Test ")]


@pytest.mark.parametrize("given", ["option", "config"])
def test_with_a_checkpoint_it_is_refused(run, config, half, whole, given):
    options = ["--ckpt_path", half, "--trainer.max_steps", 30]
    if given == "option":
        code, _, err = run("fit", *options, "--init_from", whole)
    else:
        config.write_text(f"{config.read_text()}init_from: {whole}\n")
        code, _, err = run("fit", "--config", config, *options)
    assert code == 2
    assert f"`init_from` is '{whole}', but `--ckpt_path` brings all weights with it" in err
    assert "leave one of the two out" in err


def test_weights_of_another_model_end_the_run_with_what_was_there(run, config, tmp_path):
    torch.save({"conv.weight": torch.ones(3, 3)}, tmp_path / "w.pt")
    code, _, err = run("fit", "--config", config, "--init_from", tmp_path / "w.pt")
    assert code == 1
    assert err.count("\n") == 1 and "so nothing was taken. It has conv.weight (3, 3)" in err
    assert "the model has model.0.weight (8, 4), model.0.bias (8,)" in err


@pytest.mark.parametrize("path", ["nowhere", "", "https://hub.example/model.safetensors"])
def test_a_missing_path_is_refused_before_a_session_is_made(run, config, sessions, path):
    code, _, err = run("fit", "--config", config, "--init_from", path)
    assert code == 2 and f"`init_from` is '{path}': there is no such" in err
    assert not sessions()


def test_a_callback_finds_the_model_with_its_weights_in_setup(run, config, half):
    added = ("--trainer.callbacks+", "test_beginning.Looks")
    assert run("fit", "--config", config, "--init_from", half, *SHORT, *added)[0] == 0
    assert same(Looks.seen, weights(half, "best"))


def test_the_modules_own_setup_still_comes_before_its_model_and_each_is_called_once(run, config):
    OwnSetup.calls = ()
    code, _, err = run("fit", "--config", config, "--model", "test_beginning.OwnSetup", *SHORT)
    assert code == 0, err
    assert OwnSetup.calls == ("fit", 8)


@pytest.mark.parametrize("kind", ["EMAWeightAveraging", "StochasticWeightAveraging"])
def test_averages_of_lightning_find_the_model(run, config, kind):
    added = ("--trainer.callbacks+", f"lightning.pytorch.callbacks.{kind}")
    more = ("--trainer.callbacks.swa_lrs", 0.01) if kind.startswith("Sto") else ()
    more = (*more, "--trainer.max_epochs", 2) if more else ()
    code, _, err = run("fit", "--config", config, *SHORT, *added, *more)
    assert code == 0, err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "sharded"])
def test_several_processes_begin_with_the_weights(config, half, sessions, tmp_path, kind):
    flags = ["--trainer.devices=2", "--model.learning_rate=0", "--trainer.limit_val_batches=0"]
    if kind == "sharded":
        strategy = f"{{class_path: {STRATEGIES}.ModelParallelStrategy}}"
        flags += ["--model=test_pair.ShardedModule", f"--trainer.strategy={strategy}"]
        flags += ["--trainer.strategy.data_parallel_size=2"]
        flags += ["--trainer.strategy.tensor_parallel_size=1"]
    done = run_process("fit", "--config", config, "--init_from", half, *SHORT, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Weights: ") == 1
    [session] = sessions()
    last = session / "checkpoints/last.ckpt"
    if kind == "sharded":
        dcp_to_torch_save(last, tmp_path / "whole.pt")
        last = tmp_path / "whole.pt"
    begun, there = torch.load(last)["state_dict"], weights(half, "best")
    assert len(begun) >= 6
    assert all(
        torch.equal(t, there[n]) for n, t in begun.items() if "running" not in n and "num" not in n
    )


def nets():
    inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    owner = nn.Module()
    owner.model = inner
    owner.loss_fn = nn.CrossEntropyLoss(weight=torch.ones(2))
    return owner, inner


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"model.{name}",
        lambda name: name,
        lambda name: f"module.{name}",
        lambda name: f"model._orig_mod.{name}",
        lambda name: f"backbone.{name}",
    ],
    ids=["checkpoint", "plain", "DDP", "compiled", "another name"],
)
def test_names_are_recognised_whatever_stands_before_them(rename):
    owner, _ = nets()
    _, other = nets()
    given = {rename(name): tensor for name, tensor in other.state_dict().items()}
    report = take_weights(owner, given | {"head.weight": torch.ones(7, 7)}, "w.pt")
    assert report == [
        "Weights: 9 of the model's 9 tensors are taken from w.pt",
        "    Not in this model: head.weight",
    ]
    assert all(torch.equal(owner.model.state_dict()[n], t) for n, t in other.state_dict().items())


def test_weights_of_a_part_of_the_model_find_it():
    owner = nn.Module()
    owner.model = nn.ModuleDict({"backbone": nn.Linear(3, 4), "head": nn.Linear(4, 2)})
    report = take_weights(owner, nn.Linear(3, 4).state_dict(), "w.pt")
    assert report[0] == "Weights: 2 of the model's 4 tensors are taken from w.pt"
    missing = "    Missing there, left as made: model.head.weight, model.head.bias"
    assert report[1:] == [missing]


def test_tied_weights_are_taken_by_either_name_and_the_loss_keeps_its_own():
    owner, _ = nets()
    owner.model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    owner.model[1].weight = owner.model[0].weight
    given = {"0.weight": torch.full((5, 4), 2.0), "loss_fn.weight": torch.zeros(2)}
    report = take_weights(owner, given, "w.pt")
    assert report[0] == "Weights: 2 of the model's 2 tensors are taken from w.pt"
    assert torch.equal(owner.model[1].weight, given["0.weight"])
    assert torch.equal(owner.loss_fn.weight, torch.ones(2))


def test_half_precision_and_lazy_layers_take_weights():
    owner = nn.Module()
    owner.model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    given = {"0.weight": torch.ones(4, 3), "0.bias": torch.ones(4), "1.weight": torch.ones(2, 4)}
    take_weights(owner, {name: tensor.half() for name, tensor in given.items()}, "w.pt")
    assert owner.model[0].weight.shape == (4, 3)
    assert torch.equal(owner.model[1].weight, torch.ones(2, 4))
    assert owner.model[1].weight.dtype == torch.float32


def test_only_counters_are_no_weights():
    owner, _ = nets()
    with pytest.raises(ValueError, match="so nothing was taken"):
        take_weights(owner, {"1.num_batches_tracked": torch.tensor(3)}, "w.pt")
