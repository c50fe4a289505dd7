"""`fit --seeds 0,1,2` starts a run for each seed; the same command goes on with unfinished ones."""

import contextlib
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT

from lightning_trainer.commands import seeds
from lightning_trainer.main import main
from lightning_trainer.session.record import Record


class InProcess:
    """A program that runs here, and has ended when it is made."""

    def __init__(self, command) -> None:
        try:
            main(command[2:])
            self.code = 0
        except SystemExit as stop:
            self.code = stop.code

    def wait(self) -> int:
        return self.code


@pytest.fixture
def train(run, config, monkeypatch):
    monkeypatch.setattr(seeds, "subprocess", SimpleNamespace(Popen=InProcess))
    monkeypatch.setattr("lightning_trainer.main.guarded_imports", contextlib.nullcontext)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "cli.py")])
    folder = yaml.safe_load(config.read_text())["output_path"]
    return lambda *options: run("fit", "--config", config, "--output_path", folder, *options)


STOPS = "--trainer.callbacks={class_path: test_recording.Act, init_args: {what: signal}}"


def found(sessions) -> dict[int, tuple[str, int | None]]:
    records = [Record.read(path) for path in sessions()]
    return {r.settings["seed_everything"]: (r.state, r.iteration) for r in records}


def test_each_seed_has_a_session_and_a_stopped_loop_goes_on_with_what_is_unfinished(
    train, sessions
):
    loop = ("--seeds", "3,5", "--trainer.max_steps=9", STOPS)  # each run is stopped at 7
    assert train(*loop)[0] == 128 + signal.SIGTERM
    assert found(sessions) == {3: ("interrupted", 7)}
    assert train(*loop)[0] == 128 + signal.SIGTERM
    assert found(sessions) == {3: ("finished", 9), 5: ("interrupted", 7)}
    assert train(*loop)[0] == 0
    assert found(sessions) == {3: ("finished", 9), 5: ("finished", 9)}
    code, out, _ = train(*loop)
    assert (code, out.count("has finished\n")) == (0, 2)
    assert len(sessions()) == 2


def test_a_seed_that_fails_does_not_end_the_loop(train, sessions):
    fails = "--model=test_recording.NoData"
    code, _, err = train("--seeds=1,2", fails)
    assert (code, err.count("there is no such network")) == (1, 2)
    assert found(sessions).keys() == {1, 2}


def test_a_config_file_that_has_changed_is_refused(train, config):
    assert train("--seeds=1", "--trainer.max_steps=4")[0] == 0
    config.write_text(config.read_text() + "  gradient_clip_val: 2e-1\n")
    code, _, err = train("--seeds=1", "--trainer.max_steps=4")
    assert code == 0, err  # a key that the session had not is no change of one
    text = config.read_text().replace("log_every_n_steps: 4", "log_every_n_steps: 3")
    config.write_text(text)
    code, _, err = train("--seeds=1", "--trainer.max_steps=4")
    assert code == 2
    assert "config files have changed since: trainer.log_every_n_steps 4 -> 3. Give another" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds"], "`--seeds` is ''"),
        (["--seeds", "1,1"], "`--seeds` is '1,1': give different numbers with commas, e.g. 0,1,2"),
        (["--seeds=a"], "`--seeds` is 'a'"),
        (["--seeds=1", "--seed_everything=2"], "`--seeds` begins new sessions: leave out"),
        (["--seeds=1", "--ckpt_path=a"], "`--seeds` begins new sessions: leave out"),
    ],
)
def test_a_mistake_is_one_message(train, options, message):
    code, _, err = train(*options)
    assert code == 2
    assert err.startswith(f"error: {message}")


def test_a_signal_is_passed_on_and_ends_the_loop(monkeypatch):
    forwarder, before = seeds._Forwarder(), signal.getsignal(signal.SIGTERM)
    waits = "import time, sys; print('ready', flush=True); time.sleep(60)"
    sent = []

    class Popen(subprocess.Popen):
        def wait(self, timeout=None) -> int:
            if not sent:
                sent.append(signal.raise_signal(signal.SIGTERM))
            return super().wait(timeout)

    monkeypatch.setattr(seeds.subprocess, "Popen", Popen)
    assert forwarder.run([sys.executable, "-c", waits]) == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
