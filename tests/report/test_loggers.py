"""metrics.csv and TensorBoard's file, both straight in the session folder."""

import csv

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lightning_trainer.report.loggers import MetricsFile, SessionTensorBoard
from lightning_trainer.session.folder import Session


@pytest.fixture
def logger(tmp_path):
    return MetricsFile(Session(tmp_path))


def lines(logger) -> list[str]:
    return logger.path.read_text().splitlines()


def test_a_step_has_one_row_whoever_logs_at_it(logger):
    logger.log_metrics({"a": 1.5}, step=10)
    logger.log_metrics({"b": 2.0}, step=10)
    logger.log_metrics({"a": 0.5, "b": 3.0}, step=20)
    logger.log_metrics({"b": 4.0}, step=20)
    assert lines(logger) == ["step,a,b", "10,1.5,2.0", "20,0.5,4.0"]


def test_a_later_name_is_a_new_column(logger):
    logger.log_metrics({"a": 1.0}, step=1)
    logger.log_metrics({"b": 2.0}, step=2)
    logger.log_metrics({"a": 3.0, "c": 4.0}, step=2)
    logger.log_metrics({"c": 5.0}, step=3)
    assert lines(logger) == ["step,a,b,c", "1,1.0,,", "2,3.0,2.0,4.0", "3,,,5.0"]


def test_each_row_is_in_the_file_at_once(logger):
    for step in range(1, 4):
        logger.log_metrics({"a": 1 / step}, step=step)
        assert len(lines(logger)) == step + 1


def test_numbers_are_read_back_as_they_were(logger):
    values = {"a": 1 / 3, "b": float("nan"), "c": float("-inf"), "d": 1e-300, "e,f": 2.0}
    logger.log_metrics(values, step=1)
    with logger.path.open(newline="") as file:
        [row] = csv.DictReader(file)
    read = {name: repr(float(row[name])) for name in values}
    assert read == {name: repr(value) for name, value in values.items()}


def test_a_session_that_goes_on_appends(logger, tmp_path):
    logger.log_metrics({"a": 1.0, "b": 2.0}, step=1)
    again = MetricsFile(Session(tmp_path))
    again.log_metrics({"b": 3.0}, step=2)
    again.log_metrics({"c": 4.0}, step=2)
    assert lines(again) == ["step,a,b,c", "1,1.0,2.0,", "2,,3.0,4.0"]


def test_a_step_goes_on_in_its_row_after_reopening(logger, tmp_path):
    logger.log_metrics({"a": 1.0}, step=5)
    MetricsFile(Session(tmp_path)).log_metrics({"b": 2.0}, step=5)
    assert lines(logger) == ["step,a,b", "5,1.0,2.0"]


def test_rows_from_the_restart_on_are_dropped(logger, tmp_path):
    for step in (1, 2, 3, 10, 2):  # a test at the best iteration comes last
        logger.log_metrics({"a": float(step)}, step=step)
    MetricsFile(Session(tmp_path), purge_step=3).log_metrics({"a": 7.0}, step=3)
    assert lines(logger) == ["step,a", "1,1.0", "2,2.0", "2,2.0", "3,7.0"]


def test_a_last_row_cut_anywhere_is_dropped_or_complete(logger, tmp_path):
    for step in (10, 20):
        logger.log_metrics({"a": 0.25, "b": 0.125}, step=step)
    content = logger.path.read_bytes()
    start = content.index(b"20,")
    wrong = []
    for length in range(start, len(content) + 1):
        logger.path.write_bytes(content[:length])
        MetricsFile(Session(tmp_path)).log_metrics({"a": 0.5, "b": 0.5}, step=30)
        got = lines(logger)
        assert got[:2] == ["step,a,b", "10,0.25,0.125"]
        assert got[-1] == "30,0.5,0.5"
        if got[2:-1] not in ([], ["20,0.25,0.125"]):
            wrong.append(f"{content[start:length]!r} became {got[2:-1]}")
    assert not wrong, "\n".join(wrong)


def test_rows_that_a_power_cut_has_damaged_are_dropped(logger, tmp_path):
    for step in (10, 20):
        logger.log_metrics({"a": 0.25}, step=step)
    with logger.path.open("ab") as file:
        file.write(b"\0" * 40 + b"\n\xff\xfe,1\n")
    MetricsFile(Session(tmp_path), purge_step=21).log_metrics({"a": 0.5}, step=30)
    assert lines(logger) == ["step,a", "10,0.25", "20,0.25", "30,0.5"]


def test_no_temporary_is_left(logger, tmp_path):
    logger.log_metrics({"a": 1.0}, step=1)
    logger.log_metrics({"b": 1.0}, step=2)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


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


def test_rows_that_a_full_disk_kept_out_are_written_with_the_next_one(logger, monkeypatch):
    logger.log_metrics({"a": 1.0}, step=1)

    class HalfARow(csv.DictWriter):
        def __init__(self, file, *args, **kwargs):
            super().__init__(file, *args, **kwargs)
            self.file = file

        def writerow(self, row):
            self.file.write("2,")
            raise OSError(28, "No space left on device")

    disk_full = pytest.warns(UserWarning, match="metrics.csv can't be written to: .*No space left")
    with monkeypatch.context() as patch, disk_full:
        patch.setattr(csv, "DictWriter", HalfARow)
        logger.log_metrics({"a": 2.0}, step=2)
        logger.log_metrics({"a": 3.0}, step=3)
    assert lines(logger)[:2] == ["step,a", "1,1.0"]
    logger.log_metrics({"b": 3.5}, step=3)
    assert lines(logger) == ["step,a,b", "1,1.0,", "2,2.0,", "3,3.0,3.5"]


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
