"""What keeps a restart from being exact is said once."""

import lightning
import lightning.pytorch as pl
import torch
from conftest import TinyData, TinyModule
from torch.utils.data import DataLoader, IterableDataset

from lightning_trainer.base.data import SessionLoader
from lightning_trainer.checkpoints.conditions import changed_conditions, conditions
from lightning_trainer.checkpoints.inexact import WarnOfInexactRestart
from lightning_trainer.run.state import RunState
from lightning_trainer.session.folder import Session


class Stream(IterableDataset):
    def __iter__(self):
        yield from ({"x": torch.rand(4), "label": i % 2} for i in range(40))


class StreamData(TinyData):
    def create_data(self) -> None:
        super().create_data()
        self.train_dataset = Stream()


def inexact(text: str) -> list[str]:
    return [line for line in text.splitlines() if "not bitwise exact" in line]


def test_a_stream_without_a_length_needs_a_number_of_iterations(run, config):
    flags = ("--data=test_inexact.StreamData", "--trainer.max_steps=-1", "--trainer.max_epochs=2")
    code, _, err = run("fit", "--config", config, *flags)
    assert (code, err) == (
        1,
        "error: `trainer.max_epochs` is 2, but the training loader has no length, which says where "
        "an epoch ends: give `--trainer.max_steps N`, or its batches by "
        "`--trainer.limit_train_batches N`\n",
    )
    assert run("fit", "--config", config, *flags, "--trainer.limit_train_batches=3")[0] == 0


def test_a_loader_that_starts_from_its_beginning_is_told_once(run, config, sessions):
    flags = ("--data=test_inexact.StreamData", "--trainer.max_steps=7")
    code, _, err = run("fit", "--config", config, *flags)
    assert code == 0, err
    assert inexact(err) == []
    code, _, err = run("fit", "--ckpt_path", sessions()[0], "--trainer.max_steps=12")
    assert code == 0, err
    assert inexact(err) == [
        "warning: this restart is not bitwise exact: `DataLoader` has no `state_dict`, so it "
        "starts again from its beginning"
    ]
    assert "resumable" not in err


def test_an_exact_restart_warns_of_nothing(run, config, sessions):
    assert run("fit", "--config", config, "--trainer.max_steps=7")[0] == 0
    _, _, err = run("fit", "--ckpt_path", sessions()[0], "--trainer.max_steps=12")
    assert inexact(err) == []


class TwoProcesses:
    """As much of a trainer as the callback looks at."""

    world_size, is_global_zero = 2, True
    train_dataloader = DataLoader(Stream())
    strategy = type("Strategy", (), {"root_device": torch.device("cpu"), "model": None})


def test_another_number_of_processes_is_told(capsys):
    run = RunState(Session(), goes_on=True, n_processes_before=1)
    WarnOfInexactRestart(run).on_train_start(TwoProcesses(), TinyModule())
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(": 2 processes take part instead of 1")


def test_a_new_run_warns_of_nothing(capsys):
    WarnOfInexactRestart(RunState(Session())).on_train_start(TwoProcesses(), TinyModule())
    assert capsys.readouterr().err == ""


class OtherLoader(SessionLoader):
    pass


class OtherLoaderData(TinyData):
    def create_loader(self, attribute: str, shuffle: bool) -> DataLoader:
        loader = super().create_loader(attribute, shuffle)
        if shuffle:
            loader.__class__ = OtherLoader
        return loader


def test_each_difference_from_the_conditions_before_is_told_in_a_line(
    run, config, sessions, monkeypatch
):
    assert run("fit", "--config", config, "--trainer.max_steps=7")[0] == 0
    session = sessions()[0]
    n_threads, version = torch.get_num_threads(), torch.__version__
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads + 3)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX9")
    monkeypatch.setattr(torch, "__version__", "9.0.0")
    monkeypatch.setattr(lightning, "__version__", "8.0.0")
    vectors = torch.load(session / "checkpoints/last.ckpt")["lightning_trainer"]["conditions"]
    flags = ("--data=test_inexact.OtherLoaderData", "--trainer.precision=bf16-mixed")
    flags += ("--matmul_precision=high", "--trainer.max_steps=9")
    code, _, err = run("fit", "--ckpt_path", session, *flags)
    assert code == 0, err
    reasons = [
        line.removeprefix("warning: this restart is not bitwise exact: ") for line in inexact(err)
    ]
    assert reasons == [
        "the class of the training loader is test_inexact.OtherLoader instead of "
        "lightning_trainer.base.data.SessionLoader",
        f"torch is 9.0.0 instead of {version}",
        f"lightning is 8.0.0 instead of {vectors['lightning']}",
        "`trainer.precision` is bf16-mixed instead of 32-true",
        "the precision of float32 matrix products is high instead of highest",
        f"the number of torch's threads is {n_threads + 3} instead of {n_threads}",
        f"the processor's set of vector instructions is AVX9 instead of {vectors['vectors']}",
    ]


def test_conditions_on_a_gpu_are_its_own_and_those_of_one_side_are_not_compared(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    on_cpu = conditions(trainer, TinyModule())
    device = property(lambda strategy: torch.device("cuda", 0))
    monkeypatch.setattr(type(trainer.strategy), "root_device", device)
    on_gpu = conditions(trainer, TinyModule())
    assert {"cuda", "cudnn"} <= on_gpu.keys() - on_cpu.keys()
    assert on_cpu.keys() - on_gpu.keys() == {"threads", "vectors"}
    assert changed_conditions(on_cpu, on_gpu) == ["the device is A card instead of cpu"]
    assert changed_conditions(on_gpu, on_gpu) == []


class Teacher(TinyModule):
    """A running mean that no checkpoint holds, and a constant."""

    def create_model(self) -> None:
        super().create_model()
        self.model.register_buffer("mean", torch.zeros(4), persistent=False)
        self.model.register_buffer("mask", torch.ones(4), persistent=False)

    def forward_model(self, batch):
        if self.training:
            self.model.mean.lerp_(batch["x"].mean(0), 0.1)
        return self.model(batch["x"] * self.model.mask + self.model.mean)


def test_a_buffer_that_changes_and_is_in_no_checkpoint_is_told_at_each_restart(
    run, config, sessions
):
    flags = ("--model=test_inexact.Teacher", "--trainer.max_steps=7")
    code, _, err = run("fit", "--config", config, *flags)
    assert (code, inexact(err)) == (0, [])
    for n in (9, 11):
        code, _, err = run("fit", "--ckpt_path", sessions()[0], f"--trainer.max_steps={n}")
        assert code == 0, err
        assert inexact(err) == [
            "warning: this restart is not bitwise exact: the buffer `model.mean` changes in "
            "training, and no checkpoint holds it (`register_buffer(..., persistent=False)`)"
        ]
