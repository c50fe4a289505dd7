"""Signs of life: what takes long is told while it does, once, and the start is summed up."""

import re
import time

import pytest
from conftest import TinyData, TinyModule

from lightning_trainer.report import starting
from lightning_trainer.session import slow_start


class SlowData(TinyData):
    def prepare_data(self) -> None:
        time.sleep(0.3)

    def create_data(self) -> None:
        time.sleep(0.3)
        super().create_data()


class SlowModule(TinyModule):
    def create_model(self) -> None:
        time.sleep(0.3)
        super().create_model()

    def forward_model(self, batch):
        time.sleep(0.1)
        return super().forward_model(batch)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(slow_start, "_LONG_S", 0.15)
    monkeypatch.setattr(slow_start, "_POLL_S", 0.01)
    monkeypatch.setattr(starting, "_SILENT_S", 0.15)
    monkeypatch.setattr(starting, "_SOON_S", 0.0)


SLOW = ["--model=test_starting.SlowModule", "--data=test_starting.SlowData"]
FEW = ["--trainer.max_steps=6", "--trainer.log_every_n_steps=5"]


def told(run, config, *options: str) -> list[str]:
    code, out, err = run("fit", "--config", config, *options, *FEW)
    assert code == 0, err
    return out.splitlines()


def test_each_slow_step_is_told_once_while_it_runs_and_all_are_summed_up(run, config):
    lines = told(run, config, *SLOW)
    waits = [re.sub(r" \(.*", "", line) for line in lines if line.startswith("Waiting for ")]
    names = ["`prepare_data`", "`create_data`", "`create_model`", "the check before training"]
    assert [n for n in waits if n[len("Waiting for ") :] in names] == [
        f"Waiting for {name}" for name in names
    ]
    [overview] = [line for line in lines if line.startswith("The start took ")]
    assert re.search(r"`create_data` 0\.[3-9] s, `create_model` 0\.[3-9] s, ", overview)
    assert lines.index(f"Waiting for {names[0]} (0 s so far)") < lines.index(overview)


def test_iterations_before_the_first_line_are_told_with_their_time(run, config):
    lines = told(run, config, *SLOW)
    [so_far] = [line for line in lines if line.startswith("Iterations so far: ")]
    assert re.fullmatch(
        r"Iterations so far: [1-4], 0\.\d s each: the next line comes at iteration 5, "
        r"in about 00h00m0\ds",
        so_far,
    )
    assert next(line for line in lines[lines.index(so_far) :] if line.startswith("Iteration "))


def test_a_run_without_lines_tells_nothing_of_its_iterations(run, config):
    code, out, _ = run("fit", "--config", config, *SLOW, *FEW, "--trainer.log_every_n_steps=0")
    assert code == 0 and "Iterations so far" not in out and "The start took" in out


def test_a_quick_start_says_nothing(run, config, monkeypatch):
    monkeypatch.setattr(slow_start, "_LONG_S", 60.0)
    monkeypatch.setattr(starting, "_SILENT_S", 60.0)
    assert not [line for line in told(run, config) if "Waiting" in line or "start took" in line]


def test_only_the_first_process_watches_its_start(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    slow_start.watch_start()()
    assert slow_start.current_watch() is None


def test_a_step_outside_of_a_run_is_not_told(capsys):
    slow_start.begin_step("`create_data`")
    time.sleep(0.2)
    assert capsys.readouterr().out == ""
