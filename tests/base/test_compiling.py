"""Compiled steps: what is compiled, what is copied, and that compiling ahead leaves no trace."""

import functools
from types import SimpleNamespace

import pytest
import torch
from conftest import TinyModule
from restarts import Killed, kill_at, result, same
from tiny import logged
from torch import nn

from lightning_trainer.base.compiling import CompiledStep, output_and_loss


class WithState(TinyModule):
    """Whose validations draw random numbers and change a buffer and a mode."""

    def create_model(self) -> None:
        super().create_model()
        self.model.register_buffer("n_calls", torch.zeros(()))
        self.model.register_buffer("mean", torch.zeros(()))
        self.model[2].eval()  # a layer that does not train

    def forward_model(self, batch):
        self.model.n_calls += 1
        self.model.mean = 0.9 * self.model.mean + 1  # another tensor
        return super().forward_model(batch) + 0.1 * torch.rand(())


class Plain(TinyModule):
    """Without dropout, whose random numbers a compiler draws in its own way."""

    def create_model(self) -> None:
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


class LooksBack(TinyModule):
    """A metric and a hook that keep what a step gave them."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.kept: list[torch.Tensor] = []

    def update_metrics(self, metrics, batch, output) -> None:
        super().update_metrics(metrics, batch, output)
        self.kept.append(output)

    def on_validation_batch_end(self, outputs, batch, batch_idx) -> None:
        self.kept += [outputs["loss"], outputs["output"]]

    def predict_step(self, batch, batch_idx):
        output = super().predict_step(batch, batch_idx)
        self.kept.append(output)
        return output

    def on_train_end(self) -> None:
        assert not any(tensor.isnan().any() for tensor in self.kept)

    on_predict_end = on_train_end


class Untraceable(TinyModule):
    """Leaves the graph in both hooks."""

    def forward_model(self, batch):
        if batch["x"].sum().item() > 1e9:
            raise AssertionError
        return super().forward_model(batch)

    def forward_loss(self, batch, output):
        print(end="")
        torch._dynamo.graph_break()
        return super().forward_loss(batch, output)


@pytest.fixture
def compiled(monkeypatch):
    """Replaces torch.compile by nothing; the calls that were to be compiled, with their options."""
    calls = []

    def compile_nothing(call, **options):
        calls.append((call.__self__, options))
        return call

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return calls


@pytest.fixture
def graphs(monkeypatch):
    """Compiles without generating code; each graph by the gradients' mode and its batch."""
    made = []

    def keep(graph, inputs):
        sizes = [len(x) for x in inputs if x.ndim == 2 and not isinstance(x, nn.Parameter)]
        made.append((torch.is_grad_enabled(), *sizes))
        return graph.forward

    original = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda call, mode, **options: original(call, backend=keep, **options)
    )
    yield made
    torch.compiler.reset()


@pytest.mark.long
def test_model_and_step_are_compiled_with_fixed_sizes_in_the_mode_that_is_asked_for(
    run, config, compiled
):
    for mode, name in (("true", "default"), ("max-autotune", "max-autotune")):
        options = [f"--model.compile={mode}", "--trainer.fast_dev_run=1"]
        code, _, err = run("fit", "--config", config, *options)
        assert code == 0, err
        (model, of_model), (step, of_step) = compiled[-2:]
        assert isinstance(model, nn.Sequential)
        assert isinstance(step, CompiledStep)
        assert of_model == of_step == {"mode": name, "dynamic": False}
    assert len(compiled) == 4
    code, _, err = run("fit", "--config", config, "--trainer.fast_dev_run=1")
    assert (code, len(compiled)) == (0, 4), err


def test_each_size_has_one_graph_and_the_first_batch_makes_that_of_validations(run, config, graphs):
    """26 training samples and 10 of a validation, 4 a batch."""
    options = ["--model.compile=true", "--trainer.num_sanity_val_steps=0", "--trainer.max_steps=12"]
    code, _, err = run("fit", "--config", config, *options)
    assert code == 0, err
    assert graphs == [(False, 4), (True, 4), (False, 2), (True, 2)]


def test_without_validations_no_graph_is_made_for_them(run, config, graphs):
    options = ["--model.compile=true", "--trainer.limit_val_batches=0", "--trainer.max_steps=6"]
    code, _, err = run("fit", "--config", config, *options)
    assert code == 0, err
    assert graphs == [(True, 4)]


@pytest.mark.parametrize("project", ["conftest.TinyModule", f"{__name__}.WithState"])
def test_compiling_ahead_changes_no_result(run, config, sessions, compiled, project):
    for compiles in ("true", "false"):
        options = [f"--model={project}", f"--model.compile={compiles}"]
        code, _, err = run("fit", "--config", config, *options)
        assert code == 0, err
    assert same(*map(result, sessions()))


def test_no_weight_that_autocast_has_cast_without_gradients_is_used_for_the_training(monkeypatch):
    events = []

    class Notes(TinyModule):
        def forward_model(self, batch):
            events.append("training" if self.training else "validation")
            return super().forward_model(batch)

    module = Notes()
    module.configure_model()
    module.trainer = SimpleNamespace(accumulate_grad_batches=1, enable_validation=True)
    step = CompiledStep(nn.Identity(), True, warms_up=True)
    monkeypatch.setattr(step, "forward", output_and_loss)
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: events.append("forget"))
    step._compiled_call_impl = None
    step.run(module, {"x": torch.zeros(4, 4), "label": torch.zeros(4, dtype=torch.long)})
    assert events == ["validation", "forget", "training"]


def test_a_hook_that_a_validation_can_not_run_is_compiled_when_it_comes(
    run, config, compiled, monkeypatch
):
    original = TinyModule.forward_loss

    def forward_loss(self, batch, output):
        if not self.training and self.trainer.training:
            raise KeyError("what only validations have")
        return original(self, batch, output)

    monkeypatch.setattr(TinyModule, "forward_loss", forward_loss)
    with pytest.warns(UserWarning, match="first validation has to be compiled: KeyError"):
        code, out, err = run("fit", "--config", config, "--model.compile=true")
    assert code == 0, err
    assert "Finished at iteration 23\n" in out


def test_with_cuda_graphs_what_leaves_a_step_is_a_copy(run, config, sessions, monkeypatch):
    """The compiler of this test overwrites the results of a step at the next one."""
    before: list[torch.Tensor] = []
    steps = []

    def overwriting(call, **options):
        @functools.wraps(call)
        def compiled(*args):
            while before:
                before.pop().data.fill_(torch.nan)
            results = call(*args)
            before.extend(results if isinstance(results, tuple) else [results])
            return results

        return compiled if isinstance(call.__self__, CompiledStep) else call

    monkeypatch.setattr(torch, "compile", overwriting)
    mark = "cudagraph_mark_step_begin"
    monkeypatch.setattr(torch.compiler, mark, functools.partial(steps.append, None))
    project = f"--model={__name__}.LooksBack"
    code, _, err = run("fit", "--config", config, project, "--model.compile=reduce-overhead")
    assert code == 0, err
    assert len(steps) > 23
    n_steps = len(steps)
    assert run("fit", "--config", config, project)[0] == 0
    assert len(steps) == n_steps
    assert same(*map(result, sessions()))
    assert run("predict", "--ckpt_path", sessions()[0])[0] == 0


@pytest.mark.parametrize(("mode", "ends"), [("reduce-overhead", 1), ("default", 0)])
def test_graphs_that_overwrite_gradients_are_refused_where_these_are_added_up(
    run, config, compiled, mode, ends
):
    options = [f"--model.compile={mode}", "--trainer.accumulate_grad_batches=2"]
    code, _, err = run("fit", "--config", config, *options)
    assert code == ends, err
    refusal = (
        "error: `model.compile` is 'reduce-overhead', whose CUDA graphs overwrite the gradients "
        "that `trainer.accumulate_grad_batches` adds up: use another mode"
    )
    assert (refusal in err) == bool(ends)


@pytest.mark.long
def test_hooks_that_leave_the_graph_train_as_without_a_compiler(run, config, sessions, graphs):
    project = f"--model={__name__}.Untraceable"
    for compiles in ("true", "false"):
        code, _, err = run("fit", "--config", config, project, f"--model.compile={compiles}")
        assert code == 0, err
    assert graphs
    assert same(*map(result, sessions()))


@pytest.mark.slow
def test_compiled_for_real_the_losses_are_those_without_and_a_restart_is_exact(
    run, config, sessions, monkeypatch
):
    """The last batches of an epoch and of a validation are smaller than the others.

    With 64 bits, as Adam makes much of the last ones.
    """
    project = [f"--model={__name__}.Plain", "--trainer.log_every_n_steps=1"]
    project.append("--trainer.precision=64-true")
    for compiles in ("true", "false"):
        code, _, err = run("fit", "--config", config, *project, f"--model.compile={compiles}")
        assert code == 0, err
    for name in ("train/loss", "val/loss"):
        with_compiler, without = (logged(session, name) for session in sessions())
        assert with_compiler == pytest.approx(without, rel=1e-5)
    torch.compiler.reset()
    kill_at(monkeypatch, "on_train_batch_end", lambda trainer: trainer.global_step == 8)
    with pytest.raises(Killed):
        run("fit", "--config", config, *project, "--model.compile=true", "--save_minutes=0")
    torch.compiler.reset()  # as in a new process
    assert run("fit", "--ckpt_path", sessions()[2])[0] == 0
    assert same(result(sessions()[2]), result(sessions()[0]))
    torch.compiler.reset()
