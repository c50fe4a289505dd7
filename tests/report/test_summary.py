"""What else a run tells: summary, TensorBoard's table, pictures, bars; and its random numbers."""

import csv
import re
import sys
from pathlib import Path
from textwrap import indent

import pytest
import scripted
import torch
from conftest import TinyModule
from restarts import Killed, same
from scripted import PROJECT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lightning_trainer.run.state import rule

RULE = rule()

ADVICE = """\
More than a third of an iteration is spent waiting for data: raise --data.n_workers, give the dataset
`get_batch` to make a whole batch at once, or move transforms to the device \
(`on_after_batch_transfer`).
"""  # noqa: E501


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    return scripted.start(monkeypatch)


def summary(out: str) -> str:
    told = out[re.search(r"^(Finished|Stopped) ", out, flags=re.MULTILINE).start() :]
    return re.sub(r"^Memory: +\d+\.\d GB\n", "", told, flags=re.MULTILINE)


class HalfFrozenModule(TinyModule):
    def create_model(self) -> None:
        super().create_model()
        self.model[0].requires_grad_(False)  # 4 x 8 weights, 8 biases


def test_a_finished_run_sums_up_score_times_and_what_to_type_next(run, config, script, sessions):
    script.scores = {5: 0.25, 10: 0.75}
    code, out, err = run("fit", "--config", config, *PROJECT, "--trainer.max_steps=12")
    assert code == 0, err
    session = sessions()[0]
    # 12 x 0.5 + 3 x 1.5 for validations + 3 x 2 for checkpoints = 16.5 s, of which 11 x 125 ms for
    # data and 11 x 375 ms for updates: the first iteration belongs to the rest.
    assert (
        summary(out)
        == f"""\
Finished at iteration 12
{RULE}
Best score:    0.7500 at iteration 10
Total time:    00h00m16s (data 8%, update 25%, validation 27%, checkpoints 36%, other 3%)
Examples/s:    8.0
Folder:        {session}
To go on:      python cli.py fit --ckpt_path {session} --trainer.max_steps N
To test:       python cli.py test --ckpt_path {session}
To look:       python cli.py look {session.parent}
"""
    )


def test_a_run_that_fails_sums_up_what_there_is_above_the_traceback(
    run, config, script, sessions, monkeypatch
):
    step = scripted.ScriptedModule.training_step

    def failing(self, batch, batch_idx):
        if self.global_step == 3:
            raise ArithmeticError("in iteration 4")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(scripted.ScriptedModule, "training_step", failing)
    code, out, err = run("fit", "--config", config, *PROJECT)
    assert (code, err.splitlines()[-1]) == (1, "ArithmeticError: in iteration 4")
    # 3 x 0.5 s and the wait for the fourth batch.
    assert (
        summary(out)
        == f"""\
Stopped at iteration 3
{RULE}
Best score:    none yet
Total time:    00h00m01s (data 23%, update 46%, validation 0%, checkpoints 0%, other 31%)
Examples/s:    8.0
Folder:        {sessions()[0]}
To go on:      python cli.py fit --ckpt_path {sessions()[0]}
To look:       python cli.py look {sessions()[0].parent}
"""
    )


def test_the_times_of_a_run_that_goes_on_are_those_of_all_its_starts(run, config, script, sessions):
    flags = ("--trainer.max_steps=10", "--trainer.log_every_n_steps=5")
    assert run("fit", "--config", config, *PROJECT, *flags)[0] == 0
    script.now_s += 3600  # nobody's time
    code, out, err = run("fit", "--ckpt_path", sessions()[0], "--trainer.max_steps=15")
    assert code == 0, err
    # 15 x 0.5 + 3 x 1.5 + 3 x 2 = 18 s. The writing of the checkpoint that the run goes on from
    # isn't in it: 16 s and, of those, 13 x 0.5 for all but the first iteration of each start.
    (line,) = re.findall("^Total time: .*$", summary(out), flags=re.MULTILINE)
    assert line == (
        "Total time:    00h00m16s (data 10%, update 30%, validation 28%, checkpoints 25%, other 6%)"
    )


@pytest.mark.parametrize(
    ("fetch_s", "told"),
    [(0.0, False), (0.125, False), (0.125 + 2**-20, True), (0.5, True)],
    ids=["none", "a third", "a little more than a third", "more than half"],
)
def test_advice_about_data_is_given_where_it_takes_more_than_a_third(
    run, config, script, fetch_s, told
):
    script.fetch_s = fetch_s  # and 62.5 ms for the transfer, against 375 ms for the update
    code, out, err = run("fit", "--config", config, *PROJECT, "--trainer.max_steps=5")
    assert (code, out.endswith(ADVICE)) == (0, told), err
    assert out.count("waiting for data") == told


def test_advice_about_a_loader_of_a_projects_own_is_what_helps_there(run, config, script):
    script.fetch_s = 0.5
    own = ("--data=scripted.OwnLoaderData", "--trainer.max_steps=5")
    code, out, err = run("fit", "--config", config, *PROJECT, *own)
    assert code == 0, err
    assert "waiting for data: let the loader that\n`train_dataloader` returns fetch in more" in out


def test_the_number_of_parameters_is_told_once(run, config):
    flags = ("--model=test_summary.HalfFrozenModule", "--trainer.max_steps=12")
    code, out, err = run("fit", "--config", config, *flags)
    assert code == 0, err
    told = re.findall("^.*(?:params|Parameters).*$", out + err, flags=re.MULTILINE)
    assert told == ["Parameters: 74 (trainable: 34)"]


def read_events(session: Path) -> EventAccumulator:
    events = EventAccumulator(str(session))
    events.Reload()
    return events


def read_row(session: Path) -> tuple[dict[str, object], bool]:
    """A run's settings in TensorBoard's table of runs, and whether it is marked as a success."""
    contents = read_events(session).PluginTagToContent("hparams")
    started = HParamsPluginData.FromString(contents.pop("_hparams_/session_start_info"))
    parameters = {
        name: getattr(value, value.WhichOneof("kind"))
        for name, value in started.session_start_info.hparams.items()
    }
    ended = HParamsPluginData.FromString(contents.pop("_hparams_/session_end_info", b""))
    assert not contents  # a list of columns would hold for all runs
    return parameters, ended.session_end_info.status == Status.Value("STATUS_SUCCESS")


def test_tensorboard_has_the_hyper_parameters_and_the_best_score_so_far(
    run, config, script, sessions
):
    script.scores = {5: 0.25, 10: 0.75, 12: 0.5}
    flags = ("--trainer.max_steps=12", "--seed_everything=7")
    assert run("fit", "--config", config, *PROJECT, *flags)[0] == 0
    [session] = sessions()
    best = [(e.step, e.value) for e in read_events(session).Scalars("score/best")]
    assert best == [(5, 0.25), (10, 0.75), (12, 0.75)]
    parameters, success = read_row(session)
    assert parameters == {
        "score": "points, higher is better",
        "seed_everything": 7,
        "model": "scripted.ScriptedModule",
        "model.n_groups": 1,
        "model.extra_metrics": "false",
        "data": "scripted.ScriptedData",
        "data.n_samples": 24,
        "trainer.max_steps": 12,
        "trainer.precision": "null",
        "trainer.accumulate_grad_batches": 1,
        "trainer.gradient_clip_val": "null",
    }
    assert success


def test_a_run_that_dies_before_it_has_a_score_has_a_row_that_is_no_success(
    run, config, script, sessions
):
    script.die_at = 3
    with pytest.raises(Killed):
        run("fit", "--config", config, *PROJECT, "--trainer.max_steps=12")
    [session] = sessions()
    parameters, success = read_row(session)
    assert (parameters["trainer.max_steps"], success) == (12, False)


def test_training_and_validation_share_a_chart(run, config, sessions):
    assert run("fit", "--config", config, "--trainer.max_steps=5")[0] == 0
    events = read_events(sessions()[0])
    [event] = events.Tensors("custom_scalars__config__")
    [category] = Layout.FromString(event.tensor_proto.string_val[0]).category
    charts = {chart.title: list(chart.multiline.tag) for chart in category.chart}
    assert list(charts) == ["loss", "accuracy, higher is better"]
    for title, [pattern] in charts.items():
        name = title.partition(",")[0]
        shown = {tag for tag in events.Tags()["scalars"] if re.match(pattern, tag)}
        assert shown == {f"train/{name}", f"val/{name}"}


@pytest.fixture
def pictures(monkeypatch) -> list[tuple[str, int]]:
    """The calls of `visualise`: mode and iteration."""
    calls = []

    def visualise(self, batch, output, mode) -> None:
        assert output.shape == (len(batch["i"]), 2)
        assert not output.requires_grad
        assert mode == "train" or batch["i"].tolist() == [0, 1, 2, 3]
        calls.append((mode, self.global_step))

    monkeypatch.setattr(TinyModule, "visualise", visualise)
    return calls


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model.vis_iterations=4"], [("train", 4), ("val", 5), ("train", 8), ("val", 8)]),
        (["--model.vis_iterations=0"], [("val", 5), ("val", 8)]),
        (
            ["--model.vis_iterations=4", "--trainer.accumulate_grad_batches=2"],
            [("train", 4), ("val", 5), ("train", 8), ("val", 8)],
        ),
        (
            [
                *("--model.vis_iterations=1", "--trainer.accumulate_grad_batches=2"),
                "--trainer.limit_val_batches=0",
            ],
            [("train", k) for k in (1, 2, 3, 4, 5, 6, 7, 8)],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) else "",
)
def test_pictures_are_drawn_at_their_iterations_and_of_each_validations_first_batch(
    run, config, pictures, flags, expected
):
    code, _, err = run("fit", "--config", config, "--trainer.max_steps=8", *flags)
    assert (code, pictures) == (0, expected), err


def test_no_picture_is_drawn_outside_of_training(run, config, sessions, pictures):
    assert run("fit", "--config", config, "--trainer.max_steps=5")[0] == 0
    pictures.clear()
    assert run("validate", "--ckpt_path", sessions()[0])[0] == 0
    assert run("test", "--ckpt_path", sessions()[0])[0] == 0
    assert pictures == []


def test_a_project_that_can_not_draw_trains_on_and_is_told_once(run, config, monkeypatch):
    calls = []

    def visualise(self, batch, output, mode) -> None:
        calls.append(mode)
        raise AttributeError("no classes")

    monkeypatch.setattr(TinyModule, "visualise", visualise)
    with pytest.warns(UserWarning, match="`TinyModule.visualise` failed(.|\n)*no classes") as told:
        assert run("fit", "--config", config, "--trainer.max_steps=12")[0] == 0
    assert calls == ["val"]
    assert len([w for w in told if "visualise" in str(w.message)]) == 1


@pytest.mark.parametrize("terminal", [False, True])
def test_bars_are_drawn_on_a_terminal_only(run, config, sessions, monkeypatch, terminal):
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: terminal)
    code, _, err = run("fit", "--config", config, "--trainer.max_steps=5")
    assert code == 0, err
    # One for the validation, none for the training nor for the check before it.
    assert (err.count("100%"), err.count(" 3/3 ")) == (terminal, terminal)
    code, _, err = run("test", "--ckpt_path", sessions()[0])
    assert (code, err.count("100%")) == (0, terminal)


def test_a_run_that_has_done_all_its_epochs_says_what_to_raise(run, config, script, sessions):
    flags = (
        *("--trainer.max_epochs=1", "--trainer.max_steps=-1"),
        *("--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=1.0"),
    )
    code, out, err = run("fit", "--config", config, *PROJECT, *flags)
    assert code == 0, err
    session = sessions()[0]
    assert f"fit --ckpt_path {session} --trainer.max_epochs N\n" in out
    code, _, err = run("fit", "--ckpt_path", session)
    assert (code, "nothing left to do" in err) == (1, True)


def test_random_numbers_in_training_do_not_depend_on_validations(run, config, sessions):
    # With a worker, the main process draws for dropout only, and for the seeds of validations.
    for interval in (3, 100):
        flags = (f"--trainer.val_check_interval={interval}", "--trainer.max_steps=8")
        assert run("fit", "--config", config, *flags, "--data.n_workers=1")[0] == 0
    often, once = sessions()
    assert train_losses(often) == train_losses(once)
    last = [torch.load(s / "checkpoints" / "last.ckpt")["state_dict"] for s in (often, once)]
    assert same(*last)


def test_another_seed_gives_other_random_numbers(run, config, sessions):
    for seed in (1, 2, 1):
        flags = (f"--seed_everything={seed}", "--trainer.max_steps=4")
        assert run("fit", "--config", config, *flags)[0] == 0
    first, second, third = (train_losses(session) for session in sessions())
    assert first == third != second


def train_losses(session: Path) -> dict[str, str]:
    with (session / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["step"]: row["train/loss"] for row in rows if row["train/loss"]}


def test_tensorboard_has_settings_and_environment_as_text(run, config, sessions):
    assert run("fit", "--config", config, "--trainer.max_steps=5")[0] == 0
    [session] = sessions()
    events = EventAccumulator(str(session))
    events.Reload()
    for name in ("config", "environment"):
        [event] = events.Tensors(f"{name}/text_summary")
        shown = event.tensor_proto.string_val[0].decode()
        assert shown == indent((session / f"{name}.yaml").read_text(), "    ")
