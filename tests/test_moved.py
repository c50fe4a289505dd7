"""A session whose folder or files are renamed or deleted while its run lives."""

import shutil
from pathlib import Path
from typing import ClassVar

import lightning.pytorch as pl
import pytest
from restarts import result, same
from tiny import names

from lightning_trainer.run.state import RunState


class Acts(pl.Callback):
    """Does something to the session after iteration 12."""

    action: ClassVar = staticmethod(lambda path: None)

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == 12:
            type(self).action(RunState.of(trainer, self).session.path)


@pytest.fixture
def fit_with(run, config, monkeypatch):
    """Trains; `action` is called with the session folder after iteration 12."""

    def fit_(action) -> tuple[int, str, str]:
        monkeypatch.setattr(Acts, "action", staticmethod(action))
        model = ("--model", "tiny.Echo", "--trainer.callbacks=test_moved.Acts")
        return run("fit", "--config", config, *model)

    return fit_


def assert_is_whole(session: Path, whole: Path) -> None:
    got, expected = result(session), result(whole)
    assert [name for name in expected if not same(got[name], expected[name])] == []
    assert names(session) >= names(whole) - {"curves.png"}


def test_a_renamed_folder_is_followed(fit_with, whole, tmp_path):
    code, out, err = fit_with(lambda path: path.rename(tmp_path / "renamed"))
    assert code == 0, err
    assert out.count(f"The session folder has moved: it is {tmp_path}/renamed now\n") == 1
    assert f"Folder:        {tmp_path}/renamed\n" in out
    assert not [*(tmp_path / "experiments").iterdir()]
    assert_is_whole(tmp_path / "renamed", whole)


def test_a_renamed_parent_is_followed(fit_with, whole, tmp_path):
    code, _, err = fit_with(lambda path: path.parent.rename(tmp_path / "others"))
    assert code == 0, err
    assert not (tmp_path / "experiments").exists()
    [session] = (tmp_path / "others").iterdir()
    assert_is_whole(session, whole)


def test_a_run_whose_folder_is_deleted_says_so_and_makes_no_other(fit_with, tmp_path):
    code, _, err = fit_with(shutil.rmtree)
    assert code == 1
    assert "Traceback" not in err
    [error] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert error.endswith(
        "last.ckpt can't be written: the session folder has been deleted or moved to another "
        "disk: the run ends, because nothing can be saved"
    )
    assert not [*(tmp_path / "experiments").iterdir()]


@pytest.mark.parametrize("renamed", [False, True])
def test_single_files_are_written_again(fit_with, whole, sessions, tmp_path, renamed):
    texts = {}

    def act(path: Path) -> None:
        for name in ("metrics.csv", "config.yaml", "environment.yaml", "run.json", ".lock"):
            texts[name] = (path / name).read_text()
            (path / name).rename(path / f"old_{name}") if renamed else (path / name).unlink()

    code, _, err = fit_with(act)
    assert code == 0, err
    [session] = sessions()
    assert_is_whole(session, whole)
    for name in ("config.yaml", "environment.yaml"):
        assert (session / name).read_text() == texts[name]
    process = texts[".lock"].partition(" (")[0]
    assert (session / ".lock").read_text().startswith(process)


def test_checkpoints_are_written_again(fit_with, whole, sessions, run):
    code, _, err = fit_with(lambda path: shutil.rmtree(path / "checkpoints"))
    assert code == 0, err
    [session] = sessions()
    assert (session / "checkpoints/last.ckpt").exists()
    assert run("test", "--ckpt_path", session)[0] == 0


def test_rows_are_kept_where_another_program_has_written_metrics_csv_again(
    fit_with, whole, sessions
):
    def act(path: Path) -> None:
        text = (path / "metrics.csv").read_text()
        (path / "metrics.csv").unlink()
        (path / "metrics.csv").write_text(text)

    code, _, err = fit_with(act)
    assert code == 0, err
    assert_is_whole(sessions()[0], whole)
