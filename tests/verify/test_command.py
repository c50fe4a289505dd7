"""`verify` says that restarts of a project are exact, or what differs first and why."""

import os
import random
import re
import signal
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import TinyData, TinyDataset, TinyModule

from lightning_trainer.verify import command as verify_module
from lightning_trainer.verify.command import verify
from lightning_trainer.verify.comparison import Comparison, Difference
from lightning_trainer.verify.kills import Moment

BY_EPOCH = ("--trainer.check_val_every_n_epoch=1",)


class OwnNoise(TinyDataset):
    """Its generator is made once, and a restart begins with it anew."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return {**sample, "x": sample["x"] + float(self.generator.random())}


class OwnNoiseData(TinyData):
    def create_data(self) -> None:
        super().create_data()
        self.train_dataset = OwnNoise()


class ForgetfulModule(TinyModule):
    """Scales its loss by random numbers whose generator is in no checkpoint."""

    def create_loss(self) -> None:
        super().create_loss()
        self.generator = random.Random(0)

    def forward_loss(self, batch, output):
        return super().forward_loss(batch, output) * (1 + self.generator.random())


@pytest.fixture
def kept(tmp_path, monkeypatch, forking_verify):
    """Puts the sessions into tmp_path, and tells those that were kept."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return lambda: list(tmp_path.glob("verify_*"))


@pytest.mark.long
def test_an_exact_project_is_equal_after_kills_and_leaves_nothing(run, config, kept):
    code, out, err = run("verify", "--config", config, "--model.schedule=cosine")
    assert code == 0, out + err
    assert "train without interruption" in out
    assert "ended at iteration 20; train again, with 4 kills" in out
    assert out.count("killed at iteration") == 4
    patterns = (
        r"Killed at iteration \d+.*; at iteration \d+.*; .*\.",
        r"EQUAL: bitwise as if it had never been killed\.",
        r"    20 iterations: 76 samples, losses and weights",
        r"    3 validations: scores",
        r"    last\.ckpt: 9 tensors of weights, \d+ values of the optimiser, "
        r"[1-9]\d* of schedulers, [1-9]\d* others \(positions, callbacks, metrics, best score; "
        r"no times, settings and counts of repeated validations\); best\.ckpt likewise",
        r"    metrics\.csv: [1-9]\d* numbers",
        r"    no checkpoint holds this, and nothing above shows it: `model\.pictures` \(list\)",
    )
    for line, pattern in zip(out.splitlines()[-len(patterns) :], patterns, strict=True):
        assert re.fullmatch(pattern, line), line
    assert kept() == []


@pytest.mark.long
def test_a_dataset_with_a_generator_of_its_own_is_found_where_it_goes_on(
    run, config, kept, monkeypatch
):
    monkeypatch.setattr(verify_module, "draw_moments", lambda _: [Moment("validating", 8, 2, 0.0)])
    code, out, _ = run("verify", "--config", config, f"--data={__name__}.OwnNoiseData")
    assert code == 1
    assert "Killed at iteration 8, in its validation.\nNOT EQUAL" in out
    # The validation follows the iteration that a checkpoint has.
    assert (
        "    first at iteration 9, after restart 1:\n        samples: `x` of all 4 of the batch\n"
        in out
    )
    assert "in no checkpoint: " in out
    assert "`data.train_dataset.generator` (numpy.random._generator.Generator)" in out
    assert "metrics.csv: " in out
    assert "last.ckpt: " in out
    assert "    - a dataset or transform with a random generator of its own" in out
    assert out.splitlines()[-1] == f"Kept, with all that the runs printed: {kept()[0]}"
    assert len(list(kept()[0].glob("*/session_*"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--trainer.max_epochs=3",),
        (*BY_EPOCH, "--trainer.max_epochs=3"),
        ("--trainer.devices=3", "--data.n_samples=78"),
        ("--trainer.precision=bf16-mixed",),
        ("--model=stop_kinds.NoDropout", "--model.compile=true"),
    ],
    ids=["by epochs", "validated by epochs", "three processes", "bfloat16", "compiled"],
)
def test_it_takes_whatever_fit_takes(run, config, kept, flags):
    code, out, err = run("verify", "--config", config, *flags)
    assert code == 0, out + err


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [1, 2])
def test_a_module_with_state_outside_of_the_checkpoint_is_found(run, config, kept, n_processes):
    flags = (f"--trainer.devices={n_processes}", "--data.n_samples=24")
    model = f"--model={__name__}.ForgetfulModule"
    assert run("verify", "--config", config, *flags)[0] == 0
    code, out, _ = run("verify", "--config", config, *flags, model)
    assert code == 1
    _, first = out.split("after restart 1:\n")
    assert first.startswith("        loss: ")
    assert "`model.generator` (random.Random)" in first
    assert "    - state that no checkpoint holds" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "give `--config FILE`"),
        (("--config={config}", "--ckpt_path", "x"), "takes no `--ckpt_path`"),
        (("--config={config}", "--ckpt_path=x"), "takes no `--ckpt_path`"),
    ],
)
def test_a_wrong_command_line_is_refused_in_a_line_and_nothing_is_made(
    run, config, kept, args, message
):
    code, out, err = run("verify", *(argument.format(config=config) for argument in args))
    assert (code, out, kept()) == (2, "", [])
    assert message in err.splitlines()[0]
    assert err.splitlines()[1:] == ["(more: python cli.py verify --help)"]


def test_help_is_a_few_lines(run, kept):
    code, out, _ = run("verify", "--help")
    assert code == 0
    assert out.startswith("usage: python cli.py verify --config FILE")
    assert len(out.splitlines()) < 25


class FakeRun:
    """Trains nothing: its sessions are made beforehand."""

    kills = ()

    def __init__(self, folder: Path, options: list[str], report) -> None:
        self.session = folder / "session_1"
        self.session.mkdir(parents=True)
        self.folder = folder

    def finish(self) -> Path:
        (self.session / "trail_rank0.jsonl").write_text('{"event": "batch", "iteration": 3}\n')
        (self.session / "checkpoints").mkdir()
        (self.session / "checkpoints/last.ckpt").touch()
        return self.session

    def finish_with_kills(self, moments: list[Moment], n_iterations: int) -> Path:
        assert n_iterations == 3
        return self.session


def test_a_run_that_could_not_be_killed_is_not_verified(kept, capsys, monkeypatch):
    monkeypatch.setattr(verify_module, "Run", FakeRun)
    monkeypatch.setattr(verify_module, "draw_moments", lambda _: [Moment("batch", 1, 1, 0.0)])
    monkeypatch.setattr(verify_module, "compare_bitwise", lambda *_: Comparison(None, {}, {}))
    assert verify(["--config=a.yaml"]) == 1
    assert "NOT VERIFIED: it ended before it could be killed" in capsys.readouterr().out


def test_a_run_without_iterations_is_refused(kept, capsys, monkeypatch):
    monkeypatch.setattr(verify_module, "Run", FakeRun)
    monkeypatch.setattr(verify_module, "draw_moments", lambda _: [])
    with pytest.raises(SystemExit, match=r"^2$"):
        verify(["--config=a.yaml"])
    assert "nothing to verify" in capsys.readouterr().err
    assert kept() == []


@pytest.mark.parametrize(
    ("command", "exit_code", "code"),
    [("fit", 2, 2), ("fit", 1, 1), ("fit --ckpt_path x", 2, 1), ("fit", -9, 1)],
)
def test_a_run_that_fails_is_shown_and_kept_unless_its_options_are_wrong(
    kept, capsys, monkeypatch, command, exit_code, code
):
    def fail(self) -> Path:
        raise subprocess.CalledProcessError(exit_code, command, "error: its own message")

    monkeypatch.setattr(verify_module, "Run", FakeRun)
    monkeypatch.setattr(FakeRun, "finish", fail)
    assert verify(["--config=a.yaml"]) == code
    out, err = capsys.readouterr()
    first, *rest = err.splitlines()
    assert first == "error: its own message"
    assert rest == ([f"error: `{command}` ended with exit code {exit_code}"] if code == 1 else [])
    assert len(kept()) == (code == 1)
    assert ("Kept, with all that the runs printed: " in out) == (code == 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_what_it_has_started(kept, monkeypatch, number):
    before = signal.getsignal(number)

    def signalled(self) -> Path:
        os.kill(os.getpid(), number)
        return self.session

    monkeypatch.setattr(verify_module, "Run", FakeRun)
    monkeypatch.setattr(FakeRun, "finish", signalled)
    assert verify(["--config=a.yaml"]) == 128 + number
    assert kept() == []
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--trainer.max_epochs=3"], {"max_steps": "-1", "val_check_interval": "8"}),
        (
            ["--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch=1"],
            {"max_steps": "-1", "val_check_interval": "1.0"},
        ),
        ([], {"max_steps": "20", "val_check_interval": "8"}),
    ],
)
def test_what_is_counted_by_epochs_replaces_its_own_counts(given, expected):
    settings = verify_module._settings(given)
    for name, value in expected.items():
        assert f"--trainer.{name}={value}" in settings
    assert settings[len(settings) - len(given) :] == given


def test_an_interrupt_leaves_nothing(kept, monkeypatch):
    def interrupted(self) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(verify_module, "Run", FakeRun)
    monkeypatch.setattr(FakeRun, "finish", interrupted)
    assert verify(["--config=a.yaml"]) == 130
    assert kept() == []


@pytest.mark.parametrize(
    ("found", "n_restarts", "cause"),
    [
        ({"draws": "s", "loss": "l", "weights": "w"}, 1, "a dataset or transform with a random"),
        ({"samples": "s", "own": "o"}, 1, "a data loader of your own"),
        ({"before": "b", "loss": "l"}, 1, "a hook between two steps"),
        ({"loss": "l", "weights": "w"}, 2, "state that no checkpoint holds"),
        ({"weights": "w"}, 1, "an optimiser, a scheduler or a callback with state"),
        ({"scores": "s"}, 1, "validation data or metrics with state of their own"),
        ({"order": "o"}, 1, "a data loader of your own that starts again"),
        ({"samples": "s"}, 0, "a random generator that is not seeded"),
    ],
)
def test_the_first_thing_that_differs_says_the_usual_cause(found, n_restarts, cause):
    first = Difference(0, n_restarts, 5, found)
    names = {"metrics.csv": ["step 4: train/loss", "step 8: train/loss"]}
    report = verify_module._different(
        Comparison(first, names, {"metrics.csv": ["step 8: train/loss"]})
    )
    when = f"after restart {n_restarts}" if n_restarts else "before any restart"
    assert report[:2] == [
        "NOT EQUAL to the run that was never killed.",
        f"    first at iteration 5, {when}:",
    ]
    assert report[2 : 2 + len(found)] == [f"        {text}" for text in found.values()]
    assert report[2 + len(found)] == "    metrics.csv: 1 of 2 differ (step 8: train/loss)"
    assert report[3 + len(found)] == "Usual causes:"
    assert report[4 + len(found)].startswith(f"    - {cause}")


def test_where_only_a_file_differs_no_iteration_is_blamed():
    names = {"metrics.csv": ["step 4: a"]}
    report = verify_module._different(Comparison(None, names, names))
    assert report[1] == "    metrics.csv: 1 of 1 differ (step 4: a)"
    assert report[3].startswith("    - a callback, logger or scheduler with state")
