"""metrics.csv is written row by row, survives what a run meets, and is read back whole."""

import csv

import pytest

from lightning_trainer.session.metrics_csv import MetricsReader, MetricsWriter


@pytest.fixture
def writer(tmp_path):
    return MetricsWriter(tmp_path / "metrics.csv")


def lines(writer) -> list[str]:
    return writer.path.read_text().splitlines()


def test_a_step_has_one_row_whoever_logs_at_it(writer):
    writer.add(10, {"a": 1.5})
    writer.add(10, {"b": 2.0})
    writer.add(20, {"a": 0.5, "b": 3.0})
    writer.add(20, {"b": 4.0})
    assert lines(writer) == ["step,a,b", "10,1.5,2.0", "20,0.5,4.0"]


def test_a_later_name_is_a_new_column(writer):
    writer.add(1, {"a": 1.0})
    writer.add(2, {"b": 2.0})
    writer.add(2, {"a": 3.0, "c": 4.0})
    writer.add(3, {"c": 5.0})
    assert lines(writer) == ["step,a,b,c", "1,1.0,,", "2,3.0,2.0,4.0", "3,,,5.0"]


def test_each_row_is_in_the_file_at_once(writer):
    for step in range(1, 4):
        writer.add(step, {"a": 1 / step})
        assert len(lines(writer)) == step + 1


def test_numbers_are_read_back_as_they_were(writer):
    values = {"a": 1 / 3, "b": float("nan"), "c": float("-inf"), "d": 1e-300, "e,f": 2.0}
    writer.add(1, values)
    with writer.path.open(newline="") as file:
        [row] = csv.DictReader(file)
    read = {name: repr(float(row[name])) for name in values}
    assert read == {name: repr(value) for name, value in values.items()}


def test_a_session_that_goes_on_appends(writer, tmp_path):
    writer.add(1, {"a": 1.0, "b": 2.0})
    again = MetricsWriter(writer.path)
    again.add(2, {"b": 3.0})
    again.add(2, {"c": 4.0})
    assert lines(again) == ["step,a,b,c", "1,1.0,2.0,", "2,,3.0,4.0"]


def test_a_step_goes_on_in_its_row_after_reopening(writer, tmp_path):
    writer.add(5, {"a": 1.0})
    MetricsWriter(writer.path).add(5, {"b": 2.0})
    assert lines(writer) == ["step,a,b", "5,1.0,2.0"]


def test_rows_from_the_restart_on_are_dropped(writer, tmp_path):
    for step in (1, 2, 3, 10, 2):  # a test at the best iteration comes last
        writer.add(step, {"a": float(step)})
    MetricsWriter(writer.path, purge_step=3).add(3, {"a": 7.0})
    assert lines(writer) == ["step,a", "1,1.0", "2,2.0", "2,2.0", "3,7.0"]


def test_a_last_row_cut_anywhere_is_dropped_or_complete(writer, tmp_path):
    for step in (10, 20):
        writer.add(step, {"a": 0.25, "b": 0.125})
    content = writer.path.read_bytes()
    start = content.index(b"20,")
    wrong = []
    for length in range(start, len(content) + 1):
        writer.path.write_bytes(content[:length])
        MetricsWriter(writer.path).add(30, {"a": 0.5, "b": 0.5})
        got = lines(writer)
        assert got[:2] == ["step,a,b", "10,0.25,0.125"]
        assert got[-1] == "30,0.5,0.5"
        if got[2:-1] not in ([], ["20,0.25,0.125"]):
            wrong.append(f"{content[start:length]!r} became {got[2:-1]}")
    assert not wrong, "\n".join(wrong)


def test_rows_that_a_power_cut_has_damaged_are_dropped(writer, tmp_path):
    for step in (10, 20):
        writer.add(step, {"a": 0.25})
    with writer.path.open("ab") as file:
        file.write(b"\0" * 40 + b"\n\xff\xfe,1\n")
    MetricsWriter(writer.path, purge_step=21).add(30, {"a": 0.5})
    assert lines(writer) == ["step,a", "10,0.25", "20,0.25", "30,0.5"]


def test_no_temporary_is_left(writer, tmp_path):
    writer.add(1, {"a": 1.0})
    writer.add(2, {"b": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_rows_that_a_full_disk_kept_out_are_written_with_the_next_one(writer, monkeypatch):
    writer.add(1, {"a": 1.0})

    class HalfARow(csv.DictWriter):
        def __init__(self, file, *args, **kwargs):
            super().__init__(file, *args, **kwargs)
            self.file = file

        def writerow(self, row):
            self.file.write("2,")
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(csv, "DictWriter", HalfARow)
        for step, numbers in ((2, {"a": 2.0}), (3, {"a": 3.0}), (3, {"c": 4.0})):
            with pytest.raises(OSError, match="No space left"):
                writer.add(step, numbers)
    assert lines(writer)[:2] == ["step,a", "1,1.0"]
    writer.add(3, {"b": 3.5})
    assert lines(writer) == ["step,a,c,b", "1,1.0,,", "2,2.0,,", "3,3.0,4.0,3.5"]


def test_rows_to_drop_are_dropped_also_where_the_first_try_fails(writer):
    for step in (1, 2):
        writer.add(step, {"a": float(step)})
    again = MetricsWriter(writer.path, purge_step=2)
    part = writer.path.with_suffix(".tmp")
    part.mkdir()
    with pytest.raises(OSError):
        again.add(3, {"a": 3.0})
    part.rmdir()
    again.add(4, {"a": 4.0})
    assert lines(again) == ["step,a", "1,1.0", "3,3.0", "4,4.0"]


def test_a_file_that_can_not_be_read_now_is_not_written_over(writer, monkeypatch):
    writer.add(1, {"a": 1.0})
    again = MetricsWriter(writer.path)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="stale"):
        patch.setattr(MetricsReader, "rows", fail)
        again.add(2, {"a": 2.0})
    again.add(3, {"a": 3.0})
    assert lines(again) == ["step,a", "1,1.0", "2,2.0", "3,3.0"]


def fail(*args):
    raise OSError(116, "stale file handle")


# Reading ------------------------------------------------------------------------------------------


def test_gaps_and_damaged_rows_are_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    damaged = (
        b"x,1,1\n\xff\x00,1\n\0\0\0\n1.5,1,1\n-1,1,1\n9,1\n9,1,1,1\n9,\r1,1\n"
        + b"9" * 5000
        + b",1,1\n"
    )
    path.write_bytes(b"step,a,b\n1,0.5,\n2,,3\n" + damaged + b"3,0.25,nan\n4,0.125,1")
    reader = MetricsReader(path)
    assert reader.names == ["a", "b"]
    assert [row["step"] for row in reader.rows()] == ["1", "2", "3"]
    assert reader.curves(["a", "c"]) == {"a": ([1, 3], [0.5, 0.25])}
    assert reader.newest("a") == (3, 0.25)
    assert reader.newest("c") == (3, None)


@pytest.mark.parametrize("text", [None, "", "step", "a,step\n1,2\n", "hello\n", "\n\n"])
def test_what_is_no_file_of_numbers_has_none(tmp_path, text):
    path = tmp_path / "metrics.csv"
    if text is not None:
        path.write_text(text)
    reader = MetricsReader(path)
    assert (reader.names, [*reader.rows()], reader.curves(["a"])) == ([], [], {})
    assert reader.newest("a") == (None, None)


def test_the_newest_numbers_are_found_at_the_end_of_a_long_file(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,a\n" + "".join(f"{n},{n / 2}\n" for n in range(20_000)))
    assert MetricsReader(path).newest("a") == (19_999, 9_999.5)


def test_a_deleted_or_renamed_file_is_written_again_with_its_rows(writer):
    for step in (1, 2):
        writer.add(step, {"a": float(step)})
    writer.path.unlink()
    writer.add(2, {"a": 2.5})
    assert lines(writer) == ["step,a", "1,1.0", "2,2.5"]
    writer.path.rename(writer.path.with_name("mine.csv"))
    writer.add(3, {"a": 3.0})
    assert lines(writer) == ["step,a", "1,1.0", "2,2.5", "3,3.0"]


def test_rows_of_a_file_that_was_changed_meanwhile_stay(writer):
    for step in (1, 2):
        writer.add(step, {"a": float(step)})
    writer.path.write_text("step,a\n1,1.0\n2,2.0\n")  # as an editor saves it
    with writer.path.open("a") as file:
        file.write("2,22.0\n")
    writer.add(2, {"a": 2.5})
    assert lines(writer) == ["step,a", "1,1.0", "2,2.0", "2,2.5"]


def test_a_file_whose_columns_are_damaged_is_kept_aside(writer, tmp_path, capsys):
    damaged = b"st\0p,a\n1,0.5\n"
    writer.path.write_bytes(damaged)
    writer.add(2, {"a": 0.25})
    assert writer.path.read_bytes() == b"step,a\n2,0.25\n"
    assert (writer.path.parent / "metrics_damaged.csv").read_bytes() == damaged
    assert capsys.readouterr().err == (
        f"{writer.path} is damaged: it is kept as metrics_damaged.csv\n"
    )
    writer.add(3, {"b": 1.0})
    assert capsys.readouterr().err == ""


def test_rows_that_a_checkpoint_has_kept_are_completed_once(writer):
    writer.add(1, {"a": 1.0})
    writer.add(2, {"a": 2.0})
    writer.add(3, {"a": 9.0})
    again = MetricsWriter(writer.path, purge_step=3)
    kept = [{"step": "1", "a": 1.0}, {"step": "2", "a": 2.0, "b": 0.5}]
    again.complete(kept)
    assert lines(again) == ["step,a,b", "1,1.0,", "2,2.0,0.5"]
    again.complete(kept)
    again.add(3, {"a": 3.0})
    assert lines(again) == ["step,a,b", "1,1.0,", "2,2.0,0.5", "3,3.0,"]
