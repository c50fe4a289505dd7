"""metrics.csv and TensorBoard's file, both straight in the session folder."""

import csv

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lightning_trainer.internals_of_logging import StepCount
from lightning_trainer.report.loggers import MetricsFile, SessionTensorBoard
from lightning_trainer.session.folder import Session


def read_events(folder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_the_event_file_lies_directly_in_the_folder(tmp_path):
    logger = SessionTensorBoard(Session(tmp_path))
    logger.log_metrics({"a": 1.5}, step=3)
    logger.save()
    [path] = tmp_path.rglob("*")
    assert path.parent == tmp_path
    assert path.name.startswith("events.out.tfevents.")
    assert read_events(tmp_path) == {"a": [(3, 1.5)]}
    logger.finalize("success")
    assert len(list(tmp_path.rglob("*"))) == 1


def test_points_from_the_restart_on_are_hidden(tmp_path):
    first = SessionTensorBoard(Session(tmp_path))
    for step in (1, 2, 3, 4):
        first.log_metrics({"a": float(step)}, step=step)
    first.finalize("success")
    second = SessionTensorBoard(Session(tmp_path), purge_step=3)
    second.log_metrics({"a": 30.0}, step=3)
    second.finalize("success")
    assert read_events(tmp_path) == {"a": [(1, 1.0), (2, 2.0), (3, 30.0)]}


def test_a_session_has_none_of_lightnings_files_and_folders(run, config, sessions, tmp_path):
    assert run("fit", "--config", config)[0] == 0
    assert run("test", "--ckpt_path", sessions()[0])[0] == 0
    [session] = sessions()
    names = {path.name for path in session.rglob("*")}
    assert not names & {"hparams.yaml", "version_0", "lightning_logs", "default"}
    assert [path for path in session.iterdir() if path.is_dir()] == [session / "checkpoints"]
    events = list(session.rglob("events.out.tfevents.*"))
    assert {path.parent for path in events} == {session}
    assert not (tmp_path / "lightning_logs").exists()


def test_a_run_logs_the_same_numbers_to_both(run, config, sessions):
    assert run("fit", "--config", config)[0] == 0
    [session] = sessions()
    with (session / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [4, 5, 8, 10, 12, 15, 16, 20, 23]
    scalars = read_events(session)
    for name in ("train/loss", "val/loss", "train/accuracy", "val/accuracy", "learning_rate"):
        points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        assert [step for step, _ in scalars[name]] == [step for step, _ in points]
        values = [value for _, value in points]
        assert [value for _, value in scalars[name]] == pytest.approx(values, rel=1e-6)


def test_a_full_disk_is_warned_of_and_the_row_written_with_the_next_one(tmp_path):
    logger = MetricsFile(Session(tmp_path))
    logger.log_metrics({"a": 1.0}, step=1)
    part = tmp_path / "metrics.tmp"
    part.mkdir()  # what the file would be written to
    with pytest.warns(UserWarning, match="metrics.csv can't be written to: .*Training goes on"):
        logger.log_metrics({"b": 2.0}, step=2)
    part.rmdir()
    logger.log_metrics({"a": 3.0}, step=3)
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b\n1,1.0,\n2,,2.0\n3,3.0,\n"


def test_a_disk_that_fills_up_costs_tensorboard_points_and_not_the_run(tmp_path, monkeypatch):
    logger = SessionTensorBoard(Session(tmp_path))
    logger.log_metrics({"a": 1.0}, step=1)
    logger.save()
    [first] = tmp_path.glob("events.*")

    def fail(*args):
        raise OSError(28, "No space left on device")

    writer = logger.experiment.file_writer.event_writer
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="can't be written to"):
        patch.setattr(writer, "flush", fail)
        logger.save()
    monkeypatch.setattr(logger, "_pause_until_s", 0.0)
    logger.log_metrics({"a": 2.0}, step=2)
    logger.save()
    assert len(list(tmp_path.glob("events.*"))) == 2
    assert first.stat().st_size > 0


def test_the_arguments_of_nested_classes_are_named_as_on_the_command_line(tmp_path):
    logger = SessionTensorBoard(Session(tmp_path))
    layers = {"class_path": "a.B", "init_args": {"n": 2, "bias": False, "sizes": [3, 4]}}
    logger.log_hyperparams({"model": layers, "model.clip": None, "api_key": "abc"})
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    [content] = events.PluginTagToContent("hparams").values()
    row = HParamsPluginData.FromString(content).session_start_info.hparams
    assert {name: getattr(value, value.WhichOneof("kind")) for name, value in row.items()} == {
        "model": "a.B",
        "model.n": 2,
        "model.bias": "false",
        "model.sizes": "[3, 4]",
        "model.clip": "null",
        "api_key": "<secret: not stored>",
    }


def test_lightnings_count_of_steps_is_an_iteration_and_any_other_step_stays(tmp_path):
    count = StepCount(24)
    count.iteration = lambda: 25
    board, file = SessionTensorBoard(Session(tmp_path)), MetricsFile(Session(tmp_path))
    for logger in (board, file):
        logger.log_metrics({"a": 1.0}, step=24)
        logger.log_metrics({"b": 2.0}, step=count)
        logger.log_metrics({"c": 3.0}, step=count + 1 - 1)
    board.finalize("success")
    assert read_events(tmp_path) == {"a": [(24, 1.0)], "b": [(25, 2.0)], "c": [(25, 3.0)]}
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b,c\n24,1.0,,\n25,,2.0,3.0\n"


def test_texts_and_names_have_no_secrets(tmp_path):
    known, text = ["hunter2-or-so"], "with hunter2-or-so and password=abcdef"
    board = SessionTensorBoard(Session(tmp_path), None, known)
    file = MetricsFile(Session(tmp_path), None, known)
    board.experiment.add_text("a text", text)
    board.log_hyperparams({"note": text, "renamed": "hunter2-or-so", "a": 1})
    for logger in (board, file):
        logger.log_metrics({"loss/hunter2-or-so": 1.0, "b": 2.0}, step=3)
    board.finalize("success")
    assert read_events(tmp_path) == {"loss/***": [(3, 1.0)], "b": [(3, 2.0)]}
    assert (tmp_path / "metrics.csv").read_text() == "step,loss/***,b\n3,1.0,2.0\n"
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"with *** and password=***" in content
    assert not any(secret in content for secret in (b"hunter2", b"abcdef"))


def test_a_point_that_is_there_is_not_written_again(tmp_path):
    first, file = SessionTensorBoard(Session(tmp_path)), MetricsFile(Session(tmp_path))
    for logger in (first, file):
        for _ in range(2):
            logger.log_metrics({"a": 1.0, "b": 2.0}, step=3)
        logger.log_metrics({"b": 2.5}, step=3)
        logger.log_metrics({"a": 9.0}, step=4)
    first.finalize("success")
    # A run that goes on from the checkpoint of iteration 3 logs the end of its epoch again.
    second = SessionTensorBoard(Session(tmp_path), purge_step=4)
    second.log_metrics({"a": 1.0, "b": 2.5, "c": 7.0}, step=3)
    second.log_metrics({"a": 1.0}, step=4)
    second.finalize("success")
    assert read_events(tmp_path) == {
        "a": [(3, 1.0), (4, 1.0)],
        "b": [(3, 2.0), (3, 2.5)],
        "c": [(3, 7.0)],
    }
