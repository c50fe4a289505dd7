"""What a user types, and what it leaves."""

import csv
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from conftest import CONFIG, ROOT, BaseModule, TinyData, TinyModule, run_process
from torch import nn

from lightning_trainer.start.cli import main


class Echo(TinyModule):
    """Predicts which samples it was given, and with what result."""

    def predict_step(self, batch, batch_idx):
        return {"i": batch["i"], "x": batch["x"], "output": self.forward_model(batch)}


class WideModule(TinyModule):
    def create_model(self) -> None:
        self.model = nn.Sequential(
            nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Dropout(0.3), nn.ReLU(), nn.Linear(9, 2)
        )


class NoLoss(BaseModule):
    create_model, create_optimiser = TinyModule.create_model, TinyModule.create_optimiser
    create_metrics, forward_model = TinyModule.create_metrics, TinyModule.forward_model
    forward_loss = TinyModule.forward_loss


class Breaks(TinyModule):
    """Has a fault that shows at iteration 13, until it is repaired."""

    broken = True

    def forward_model(self, batch):
        if self.broken and self.global_step == 12:
            raise ValueError("a fault in a hook")
        return super().forward_model(batch)


class NoFiles(TinyData):
    def create_data(self) -> None:
        raise ValueError("`data.root` is 'x': there are no images in it, give --data.root FOLDER")


class Talks(TinyData):
    def create_data(self) -> None:
        super().create_data()
        print("a print of the project's own")
        warnings.warn("a warning of the project's own", stacklevel=1)
        os.write(2, b"bytes from below Python\n")


class Counter(pl.Callback):
    """A callback of the user's own."""

    n_batches = 0

    def on_train_batch_end(self, *args, **kwargs) -> None:
        Counter.n_batches += 1


def use_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the streams on their descriptors, as in a process of its own; pytest's go past them.

    No fixture: pytest puts its own streams back before it calls the test.
    """
    for fd, name in ((1, "stdout"), (2, "stderr")):
        monkeypatch.setattr(sys, name, open(fd, "w", buffering=1, closefd=False))  # noqa: SIM115


@pytest.fixture
def fit(run, config, sessions):
    """Runs `fit` on the tiny config with more options; returns the session it made."""

    def fit_(*options: object) -> Path:
        before = sessions()
        code, _, err = run("fit", "--config", config, *options)
        assert code == 0, err
        [session] = set(sessions()) - set(before)
        return session

    return fit_


def fit_once(folder: Path, *options: str) -> Path:
    file = folder / "tiny.yaml"
    file.write_text(CONFIG.format(output_path=folder / "experiments"))
    main(["fit", "--config", str(file), "--model", f"{__name__}.Echo", *options])
    [session] = (folder / "experiments").iterdir()
    return session


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The session of a run of 23 iterations. To be read only."""
    return fit_once(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def first_half(tmp_path_factory) -> Path:
    """The session of a run of 11 iterations, whose best one is not the last. To be read only."""
    return fit_once(tmp_path_factory.mktemp("half"), "--trainer.max_steps", "11")


@pytest.fixture
def done(whole, tmp_path) -> Path:
    """A copy of a session that has done all its 23 iterations."""
    return Path(shutil.copytree(whole, tmp_path / "done"))


@pytest.fixture
def half(first_half, tmp_path) -> Path:
    """A copy of a session that has done 11 iterations."""
    return Path(shutil.copytree(first_half, tmp_path / "half"))


def weights(session: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(session / f"checkpoints/{name}.ckpt")["state_dict"]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def names(folder: Path) -> set[str]:
    """All files but the lock, those of TensorBoard by their beginning."""
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name.split(".tfevents.")[0] for name in files - {".lock"}}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def settings(session: Path) -> dict:
    return yaml.safe_load((session / "config.yaml").read_text())


def logged(session: Path, name: str) -> dict[int, float]:
    with (session / "metrics.csv").open(newline="") as file:
        return {int(r["step"]): float(r[name]) for r in csv.DictReader(file) if r.get(name)}


# The session folder ---------------------------------------------------------------------------


def test_a_run_leaves_the_files_of_the_design_and_nothing_else(whole):
    assert names(whole) - {"uncommitted.patch"} == {
        *("config.yaml", "log.txt", "environment.yaml", "metrics.csv", "events.out"),
        "curves.png",
        *("checkpoints/best.ckpt", "checkpoints/last.ckpt"),
    }
    assert sorted(os.listdir(whole.parent.parent)) == ["experiments", "tiny.yaml"]


def test_tag_and_output_path_name_the_folder(run, config, tmp_path):
    code, out, _ = run("fit", "--config", config, "--tag", "lr=1", "--output_path", tmp_path / "o")
    assert code == 0
    [folder] = os.listdir(tmp_path / "o")
    assert folder.endswith("_lr=1")
    assert out.startswith(f"Session: {tmp_path}/o/{folder}\n")
    assert not (tmp_path / "experiments").exists()


def test_the_config_of_a_session_runs_the_same_again(run, fit, sessions, tmp_path):
    first = fit(
        "--model.learning_rate", "0.03", "--seed_everything", "7", "--model.schedule=cosine"
    )
    code, _, err = run("fit", "--config", first / "config.yaml")
    assert code == 0, err
    [second] = set(sessions()) - {first}
    assert settings(second) == settings(first)
    assert same(weights(first), weights(second))
    assert logged(first, "val/loss") == logged(second, "val/loss")


def test_the_config_has_every_setting_as_resolved(whole):
    config = settings(whole)
    assert config["model"] == {
        "class_path": f"{__name__}.Echo",
        "init_args": {
            **{"learning_rate": 0.01, "schedule": "none"},
            **{"vis_iterations": 500, "score_name": None, "score_mode": "max"},
            **{"channels_last": False, "compile": False},
        },
    }
    assert config["trainer"]["max_steps"] == 23
    assert config["trainer"]["max_epochs"] == -1
    assert config["trainer"]["val_check_interval"] == 5
    assert (config["save_minutes"], config["seed_everything"]) == (10.0, 0)


@pytest.mark.parametrize(
    "tag", ["3e-3", "1e3", "2024", "1_000", "2024-01-02", "null", "true", "0x1f"]
)
def test_a_tag_that_yaml_could_take_for_something_else_comes_back_as_it_was(
    run, config, fit, tag, tmp_path
):
    session = fit("--tag", tag, "--trainer.fast_dev_run", "1")
    assert session.name.endswith(f"_{tag}")
    code, out, err = run("fit", "--config", session / "config.yaml", "--print_config")
    assert code == 0, err
    (tmp_path / "again.yaml").write_text(out)
    assert settings(session)["tag"] == yaml.safe_load(out)["tag"] == tag


def test_another_seed_is_another_run(fit, first_half):
    options = ["--trainer.max_steps", "11", "--seed_everything"]
    assert same(weights(fit(*options, "0")), weights(first_half))
    assert not same(weights(fit(*options, "1")), weights(first_half))


def test_a_seed_that_is_drawn_is_recorded_and_runs_the_same_again(run, fit, sessions):
    first = fit("--seed_everything", "true", "--trainer.max_steps", "6")
    seed = settings(first)["seed_everything"]
    assert type(seed) is int
    assert run("fit", "--config", first / "config.yaml")[0] == 0
    [second] = set(sessions()) - {first}
    assert settings(second)["seed_everything"] == seed
    assert same(weights(first), weights(second))


def test_an_output_path_with_a_file_in_the_way_is_one_line(run, config, tmp_path):
    (tmp_path / "file").touch()
    code, out, err = run("fit", "--config", config, "--output_path", tmp_path / "file")
    assert code in (1, 2)
    assert out == ""
    assert err.startswith(f"error: `output_path` is '{tmp_path}/file', where no session folder")
    assert "Traceback" not in err


def test_a_fast_dev_run_saves_no_checkpoint(fit):
    session = fit("--trainer.fast_dev_run", "true")
    assert names(session) - {"uncommitted.patch"} == {"config.yaml", "log.txt", "environment.yaml"}


def test_the_session_of_another_command_says_how_to_run_that_again(run, config, whole, sessions):
    code, _, err = run("test", "--config", config, "--ckpt_path", whole)
    assert code == 0, err
    [second] = sessions()
    command = shlex.split((second / "config.yaml").read_text().splitlines()[0])
    assert command[:3] == ["#", "python", "cli.py"]
    code, _, err = run(*command[3:-1], second / command[-1])
    assert code == 0, err


# What wins ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "A", "--tag", "option"],
        ["--tag", "option", "--config", "A"],
        ["--tag=option", "--config=A", "-c", "B"],
        ["-c", "A", "--tag", "option", "--config", "B"],
    ],
    ids=" ".join,
)
def test_options_win_over_files_and_later_files_over_earlier(run, config, tmp_path, arguments):
    (tmp_path / "A.yaml").write_text("tag: a\nmodel:\n  init_args:\n    learning_rate: 0.1\n")
    (tmp_path / "B.yaml").write_text("tag: b\nmodel:\n  init_args:\n    schedule: cosine\n")
    files = {"A": tmp_path / "A.yaml", "B": tmp_path / "B.yaml", "--config=A": ""}
    files["--config=A"] = f"--config={tmp_path / 'A.yaml'}"
    given = [files.get(argument, argument) for argument in arguments]
    code, out, err = run("fit", "--config", config, *given, "--print_config")
    assert code == 0, err
    printed = yaml.safe_load(out)
    assert printed["tag"] == "option"
    assert printed["model"]["init_args"]["learning_rate"] == 0.1
    assert printed["model"]["init_args"]["schedule"] == ("cosine" if "B" in arguments else "none")
    assert printed["trainer"]["max_steps"] == 23


def test_without_an_option_the_last_file_wins(run, config, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text(f"tag: {name}\n")
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    code, out, _ = run("fit", "-c", config, "-c", b, "-c", a, "--print_config")
    assert (code, yaml.safe_load(out)["tag"]) == (0, "a")


def test_printing_the_config_makes_no_session(run, config, done, sessions):
    assert run("fit", "--config", config, "--print_config")[0] == 0
    assert sessions() == []
    before = contents(done)
    code, out, _ = run("fit", "--ckpt_path", done, "--print_config", "--trainer.max_steps=99")
    assert code == 0
    assert yaml.safe_load(out)["trainer"] == {**settings(done)["trainer"], "max_steps": 99}
    assert contents(done) == before


def test_callbacks_and_loggers_of_a_file_add_to_the_built_in_ones(run, fit, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text(
        "trainer:\n"
        f"  callbacks:\n    - class_path: {__name__}.Counter\n"
        "  logger:\n    class_path: lightning.pytorch.loggers.CSVLogger\n"
        f"    init_args:\n      save_dir: {tmp_path}/csv\n      name: own\n"
    )
    Counter.n_batches = 0
    session = fit("--config", more)
    assert Counter.n_batches == 23
    [own] = (tmp_path / "csv/own").rglob("metrics.csv")
    with own.open(newline="") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row.get("val/loss")]
    assert losses == list(logged(session, "val/loss").values())
    [hparams] = (tmp_path / "csv/own").rglob("hparams.yaml")
    assert yaml.safe_load(hparams.read_text())["model.learning_rate"] == 0.01
    assert {"metrics.csv", "events.out", "checkpoints/best.ckpt"} <= names(session)
    Counter.n_batches = 0  # and they are there again, once each, when it goes on
    code, _, err = run("fit", "--ckpt_path", session, "--trainer.max_steps", "25")
    assert code == 0, err
    assert Counter.n_batches == 2


# Going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["absolute", "relative", "relative/", "file"])
def test_a_moved_folder_goes_on_in_place(run, half, whole, sessions, tmp_path, monkeypatch, form):
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    half.rename(moved)
    monkeypatch.chdir(tmp_path)
    paths = {"absolute": moved, "relative": "elsewhere/renamed", "relative/": "elsewhere/renamed/"}
    path = paths.get(form, moved / "checkpoints" / "last.ckpt")
    there = os.listdir(whole.parent)
    code, out, err = run("fit", "--ckpt_path", path, "--trainer.max_steps", "23")
    assert code == 0, err
    assert "Going on with " in out
    assert "elsewhere/renamed after iteration 11\n" in out
    assert "    trainer.max_steps: 11 -> 23\n" in out
    assert sessions() == []
    assert os.listdir(whole.parent) == there
    assert names(moved) - {"uncommitted.patch", "uncommitted_1.patch"} == {
        *("config.yaml", "config_1.yaml", "log.txt", "environment.yaml", "metrics.csv"),
        "curves.png",
        *("events.out", "checkpoints/best.ckpt", "checkpoints/last.ckpt"),
    }
    assert settings(moved)["trainer"]["max_steps"] == 23
    assert same(weights(moved), weights(whole))
    assert len(yaml.safe_load((moved / "environment.yaml").read_text())["restarts"]) == 1


def test_what_is_as_before_is_not_told(run, whole, sessions, config, monkeypatch):
    assert run("fit", "--config", config, "--model", f"{__name__}.Breaks")[0] == 1
    [session] = sessions()
    monkeypatch.setattr(Breaks, "broken", False)
    code, out, err = run("fit", "--ckpt_path", session)
    assert code == 0, err
    assert out.startswith(f"Going on with {session} after iteration 10\nParameters: ")
    assert "config_1.yaml" not in names(session)
    assert same(weights(session), weights(whole))


def test_changed_settings_commit_and_versions_are_told(run, half):
    file = half / "environment.yaml"
    environment = yaml.safe_load(file.read_text())
    commit, torch_version = environment["git_commit"], environment["packages"]["torch"]
    environment["git_commit"], environment["packages"]["torch"] = "c0ffee", "1.0"
    file.write_text(yaml.safe_dump(environment))
    options = ["--trainer.max_steps=12", "--model.learning_rate=0.5", "--tag=other"]
    code, out, err = run("fit", "--ckpt_path", half, *options)
    assert code == 0, err
    block = out.split("What differs from before:\n")[1]
    told = [line.strip() for line in block.splitlines() if line.startswith("    ")]
    assert told[:5] == [
        "tag: tiny -> other",
        "trainer.max_steps: 11 -> 12",
        "model.init_args.learning_rate: 0.01 -> 0.5",
        f"git_commit: c0ffee -> {commit}",
        f"packages.torch: 1.0 -> {torch_version}",
    ]


def test_a_session_folder_inside_the_repository_is_no_change_of_the_code(
    run, fit, tmp_path, monkeypatch
):
    code = tmp_path / "code"
    code.mkdir()
    (code / "cli.py").write_text("print(1)\n")
    git = ["git", "-C", code, "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(sys, "argv", [str(code / "cli.py")])
    options = ["--output_path", code / "runs", "--trainer.max_steps"]
    assert run("fit", "--config", tmp_path / "tiny.yaml", *options, "5")[0] == 0
    [session] = (code / "runs").iterdir()
    assert "uncommitted.patch" not in names(session)
    assert yaml.safe_load((session / "environment.yaml").read_text())["git_dirty"] is False
    code, out, err = run("fit", "--ckpt_path", session, "--trainer.max_steps", "6")
    assert code == 0, err
    assert "uncommitted" not in out


def test_reaching_the_end_leaves_nothing_to_do_and_says_how_to_go_on(run, done):
    before = contents(done)
    code, out, err = run("fit", "--ckpt_path", done)
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == (
        "error: nothing left to do: iteration 23 of 23 is reached. "
        "To go on, raise `--trainer.max_steps` above 23"
    )
    assert contents(done) == before


@pytest.mark.parametrize("damaged", ["last", "best"])
def test_a_damaged_checkpoint_is_passed_over_and_named(run, half, damaged):
    iteration = {name: torch.load(half / f"checkpoints/{name}.ckpt")["global_step"]
                 for name in ("last", "best")}  # fmt: skip
    path = half / f"checkpoints/{damaged}.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    command = ["fit", "--trainer.max_steps", "12"] if damaged == "last" else ["test"]
    code, out, err = run(*command, "--ckpt_path", half)
    reason = "is truncated, damaged or no checkpoint"
    assert (code, err) == (0, f"{path} {reason}: passed over\n")
    other = iteration["best" if damaged == "last" else "last"]
    assert f"after iteration {other}\n" in out or f"(iteration {other})\n" in out


def test_a_damaged_checkpoint_is_named_in_the_log(run, half, monkeypatch):
    use_descriptors(monkeypatch)
    (half / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert run("fit", "--trainer.max_steps", "12", "--ckpt_path", half)[0] == 0
    assert "last.ckpt is empty: passed over\n" in (half / "log.txt").read_text()


def test_with_a_config_a_new_session_starts_from_the_checkpoint(run, half, whole, sessions, config):
    before = contents(half)
    code, out, err = run("fit", "--ckpt_path", half, "--config", config)
    assert code == 0, err
    [session] = sessions()
    assert out.startswith(
        f"Session: {session}\nCheckpoint: {half}/checkpoints/last.ckpt (iteration 11)\n"
    )
    assert contents(half) == before
    assert min(logged(session, "train/loss")) > 11
    assert same(weights(session), weights(whole))


def test_a_new_session_takes_the_weights_of_the_checkpoint_and_the_settings_of_the_file(
    run, whole, sessions, config
):
    start = weights(whole, "best")
    path = whole / "checkpoints" / "best.ckpt"
    options = ["--model.learning_rate=0", "--trainer.max_steps=30", "--tag=again"]
    assert run("fit", "--ckpt_path", path, "--config", config, *options)[0] == 0
    [session] = sessions()
    assert settings(session)["tag"] == "again"
    for key, value in weights(session).items():
        if "running_" not in key and "num_batches" not in key:  # batch norm counts all the same
            assert torch.equal(value, start[key]), key


def test_a_file_can_name_the_checkpoint(run, first_half, whole, sessions, config, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text(f"ckpt_path: {first_half}/checkpoints/last.ckpt\n")
    assert run("fit", "--config", config, "--config", more)[0] == 0
    [session] = sessions()
    assert min(logged(session, "train/loss")) > 11
    assert same(weights(session), weights(whole))


def test_a_checkpoint_file_is_enough_alone(run, fit, sessions, tmp_path):
    first = fit()
    expected, val_loss = weights(first), logged(first, "val/loss")
    file = tmp_path / "a" / "b" / "copy.ckpt"
    file.parent.mkdir(parents=True)
    shutil.copy(first / "checkpoints" / "best.ckpt", file)
    iteration = torch.load(file)["global_step"]
    assert iteration < 23
    shutil.rmtree(first)
    code, out, err = run("test", "--ckpt_path", file)
    assert code == 0, err
    assert f"Checkpoint: {file} (iteration {iteration})\n" in out
    assert f"Test loss: {val_loss[iteration]:.4f}\n" in out  # the tiny test data are the val data
    [tested] = sessions()
    code, _, err = run("fit", "--ckpt_path", file)
    assert code == 0, err
    fitted = (set(sessions()) - {tested}).pop()
    assert same(weights(fitted), expected)


def test_a_new_session_does_not_take_over_the_best_score_of_the_one_it_starts_from(
    run, whole, sessions, config
):
    path = whole / "checkpoints" / "best.ckpt"
    code, out, _ = run("fit", "--ckpt_path", path, "--config", config)
    assert code == 0
    [session] = sessions()
    assert "New best score: -inf -> " in out
    best = torch.load(session / "checkpoints" / "best.ckpt")["global_step"]
    assert best > torch.load(path)["global_step"]
    assert f" at iteration {best}\n" in out


@pytest.mark.parametrize("text", ["", "tag: ["])
def test_a_session_whose_config_is_damaged_goes_on_by_that_in_the_checkpoint(run, half, text):
    before = (half / "config.yaml").read_text()
    (half / "config.yaml").write_text(text)
    code, _, err = run("fit", "--ckpt_path", half, "--trainer.max_steps", "12")
    assert code == 0, err
    after = (half / "config.yaml").read_text()
    assert after == before.replace(
        f"max_steps: {yaml.safe_load(before)['trainer']['max_steps']}", "max_steps: 12"
    )


@pytest.mark.parametrize("text", [None, "", "host: ["])
def test_a_session_whose_environment_is_gone_or_damaged_goes_on(run, half, text):
    (half / "environment.yaml").unlink()
    if text is not None:
        (half / "environment.yaml").write_text(text)
    code, _, err = run("fit", "--ckpt_path", half, "--trainer.max_steps", "12")
    assert code == 0, err
    assert "python" in (half / "environment.yaml").read_text()


@pytest.mark.parametrize("text", [None, "", "step,train/loss\n", "step,train/lo"])
def test_a_session_whose_metrics_are_gone_or_damaged_goes_on(run, half, text):
    (half / "metrics.csv").unlink()
    if text is not None:
        (half / "metrics.csv").write_text(text)
    code, _, err = run("fit", "--ckpt_path", half, "--trainer.max_steps", "12")
    assert code == 0, err
    assert list(logged(half, "train/loss")) == [12]
    assert list(logged(half, "val/loss")) == [12]


# Which checkpoint the other commands take -----------------------------------------------------


@pytest.fixture(scope="module")
def best(whole) -> int:
    """The iteration of the best checkpoint, which is not the last."""
    best = torch.load(whole / "checkpoints" / "best.ckpt")["global_step"]
    loss = logged(whole, "val/loss")
    assert best < 23
    assert f"{loss[best]:.4f}" != f"{loss[23]:.4f}"
    assert not same(weights(whole, "best"), weights(whole))
    return best


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_session_is_scored_at_its_best_checkpoint(run, sessions, done, best, command):
    loss = logged(done, "val/loss")
    files = ["config.yaml", "environment.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"]
    before = [(done / file).read_bytes() for file in files]
    code, out, err = run(command, "--ckpt_path", done)
    assert code == 0, err
    assert f"Checkpoint: {done}/checkpoints/best.ckpt (iteration {best})\n" in out
    mode = "Val" if command == "validate" else "Test"
    assert f"{mode} loss: {loss[best]:.4f}\n" in out  # the tiny test data are the val data
    assert sessions() == []
    assert [(done / file).read_bytes() for file in files] == before
    if command == "test":
        assert logged(done, "test/loss") == {best: loss[best]}


def test_predictions_are_those_of_the_best_checkpoint_in_the_order_of_the_data(
    run, sessions, done, best
):
    code, out, err = run("predict", "--ckpt_path", done)
    assert code == 0, err
    assert f"Predictions saved to: {done}/predictions.pt\n" in out
    assert sessions() == []
    batches = torch.load(done / "predictions.pt")
    assert [len(batch["i"]) for batch in batches] == [4, 4, 2]
    assert torch.cat([batch["i"] for batch in batches]).tolist() == list(range(10))
    model = TinyModule()
    model.configure_model()
    model.load_state_dict(weights(done, "best"))
    model.eval()
    for batch in batches:
        assert torch.equal(model.forward_model(batch), batch["output"])


def test_a_file_inside_a_session_is_taken_itself(run, sessions, done, best):
    code, out, _ = run("test", "--ckpt_path", done / "checkpoints" / "last.ckpt")
    assert code == 0
    assert f"Test loss: {logged(done, 'val/loss')[23]:.4f}\n" in out
    assert sessions() == []


# What can't be gone on from -------------------------------------------------------------------


def damage_nothing(path: Path) -> None:
    pass


def write_text(path: Path) -> None:
    path.write_text("hello")


def write_weights(path: Path) -> None:
    torch.save({"layer.weight": torch.ones(3)}, path)


def write_tensor(path: Path) -> None:
    torch.save(torch.ones(3), path)


def write_half(path: Path) -> None:
    torch.save({"global_step": 3, "state_dict": {"w": torch.ones(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize(
    ("write", "named"),
    [
        (damage_nothing, "there is no such session folder or checkpoint file"),
        (Path.mkdir, "give a session folder (session_...) or a checkpoint file"),
        (Path.touch, "which is empty"),
        (write_text, "which is truncated, damaged or no checkpoint"),
        (write_weights, "it has no training state, only layer.weight"),
        (write_tensor, "can't be read as a checkpoint"),
        (write_half, "which is truncated, damaged or no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(run, config, sessions, tmp_path, write, named, with_config):
    path = tmp_path / "deep" / "er" / "x.ckpt"
    path.parent.mkdir(parents=True)
    write(path)
    code, out, err = run("fit", "--ckpt_path", path, *(["-c", config] if with_config else []))
    assert (code, out) == (2, "")
    assert str(path) in err
    assert named in err
    assert len(err.splitlines()) <= 3
    assert sessions() == []


def test_a_checkpoint_without_settings_needs_a_config(run, whole, tmp_path):
    checkpoint = torch.load(whole / "checkpoints" / "last.ckpt")
    del checkpoint["session_config"]
    (tmp_path / "a" / "b").mkdir(parents=True)
    torch.save(checkpoint, tmp_path / "a" / "b" / "x.ckpt")
    code, _, err = run("fit", "--ckpt_path", tmp_path / "a" / "b" / "x.ckpt")
    assert code == 2
    assert "give them by `--config`" in err


def test_a_session_without_checkpoints_says_how_to_start_again(run, half):
    shutil.rmtree(half / "checkpoints")
    code, out, err = run("fit", "--ckpt_path", half)
    assert (code, out) == (2, "")
    assert f"{half} has no checkpoint to use" in err
    assert f"`fit --config {half}/config.yaml`" in err


# What goes wrong in a project -----------------------------------------------------------------


def test_a_class_that_lacks_a_hook_is_named_with_the_hook(run, config):
    code, _, err = run("fit", "--config", config, "--model", f"{__name__}.NoLoss")
    assert code != 0
    assert err == (
        "error: `NoLoss` does not define `create_loss`: every BaseModule needs it "
        "(`help(lightning_trainer.base.module.BaseModule.create_loss)` says what to set)\n"
    )


def test_an_error_that_the_project_explains_is_one_line_in_terminal_and_log(
    run, config, sessions, monkeypatch
):
    use_descriptors(monkeypatch)
    code, out, err = run("fit", "--config", config, "--data", f"{__name__}.NoFiles")
    assert code == 1
    assert err == "error: `data.root` is 'x': there are no images in it, give --data.root FOLDER\n"
    [session] = sessions()
    assert (session / "log.txt").read_text() == out + err


def test_a_fault_in_a_hook_leaves_its_traceback_from_there_in_terminal_and_log(
    run, config, sessions, monkeypatch
):
    use_descriptors(monkeypatch)
    code, out, err = run("fit", "--config", config, "--model", f"{__name__}.Breaks")
    assert code == 1
    assert err.startswith(f'Traceback (most recent call last):\n  File "{__file__}"')
    assert 'raise ValueError("a fault in a hook")' in err
    assert err.endswith("ValueError: a fault in a hook\n")
    assert "Stopped at iteration 12\n" in out
    [session] = sessions()
    log = (session / "log.txt").read_text()
    assert sorted(log.splitlines()) == sorted((out + err).splitlines())
    assert err in log


def test_the_log_is_what_the_terminal_showed(fit, run, monkeypatch):
    use_descriptors(monkeypatch)
    session = fit("--trainer.max_steps", "11")
    before = (session / "log.txt").read_text()
    assert "Finished at iteration 11\n" in before
    code, out, err = run("fit", "--ckpt_path", session, "--trainer.max_steps", "12")
    assert (code, err) == (0, "")
    assert (session / "log.txt").read_text() == before + out


# What is given back ---------------------------------------------------------------------------


def state() -> dict[str, object]:
    return {
        "streams": (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__),
        "descriptors": [(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in (1, 2)],
        "line buffering": (sys.stdout.line_buffering, sys.stderr.line_buffering),
        "levels": {
            name: logging.getLogger(name).level
            for name in ("", "lightning", "lightning.pytorch", "lightning.fabric")
        },
        "handlers": list(logging.getLogger().handlers),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "hooks": (sys.excepthook, sys.unraisablehook),
        "torch": (torch.get_default_dtype(), torch.is_grad_enabled()),
        "folder": os.getcwd(),
        "session": os.environ.get("LIGHTNING_TRAINER_SESSION"),
    }


@pytest.mark.parametrize(
    ("code", "options"),
    [
        (0, []),
        (1, ["--model", f"{__name__}.Breaks"]),
        (1, ["--data", f"{__name__}.NoFiles"]),
        (2, ["--trainer.max_stepz", "3"]),
    ],
    ids=["done", "fault in a hook", "explained error", "misspelt option"],
)
def test_everything_is_given_back(config, monkeypatch, code, options, capfd):
    use_descriptors(monkeypatch)
    monkeypatch.delenv("LIGHTNING_TRAINER_SESSION", raising=False)
    before = state()
    arguments = ["fit", "--config", str(config), "--trainer.max_steps=13", *options]
    if code:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == code
    else:
        main(arguments)
    after = state()
    assert {key for key in before if before[key] != after[key]} == set()


# A process of its own -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """`python cli.py fit` on data that print and warn: the session and what the terminal showed."""
    folder = tmp_path_factory.mktemp("process")
    file = folder / "tiny.yaml"
    file.write_text(CONFIG.format(output_path=folder / "experiments"))
    result = run_process("fit", "--config", file, "--data", f"{__name__}.Talks")
    assert result.returncode == 0, result.stderr
    [session] = (folder / "experiments").iterdir()
    return session, result


def test_the_users_own_words_are_shown_and_lightnings_chatter_is_not(process):
    _, result = process
    assert result.stdout.count("a print of the project's own\n") == 1
    warned, source, below = result.stderr.splitlines()
    assert warned.endswith("UserWarning: a warning of the project's own")
    assert source.strip().startswith("warnings.warn(")
    assert below == "bytes from below Python"
    for word in (
        "GPU available",
        "TPU",
        "💡",
        "Tip",
        "Seed set",
        "Trainer.fit",
        "anity",
        "litlogger",
    ):
        assert word not in result.stdout + result.stderr


def test_the_log_of_a_process_is_all_that_the_terminal_showed(process):
    session, result = process
    log = (session / "log.txt").read_text()
    assert sorted(log.splitlines()) == sorted((result.stdout + result.stderr).splitlines())
    assert [line for line in log.splitlines() if line in result.stdout.splitlines()] == [
        line for line in result.stdout.splitlines()
    ]


def test_the_command_line_is_recorded_and_the_summary_can_be_pasted(process):
    session, result = process
    recorded = yaml.safe_load((session / "environment.yaml").read_text())
    assert recorded["command"] == shlex.join(["python", *result.args[1:]])
    assert f"To go on:      python cli.py fit --ckpt_path {session} --trainer.max_steps N\n" in (
        result.stdout
    )
    assert f"To test:       python cli.py test --ckpt_path {session}\n" in result.stdout


# The configs of the repository ----------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_first_line_of_a_config_is_the_command_that_runs_it(run, monkeypatch, path):
    monkeypatch.chdir(ROOT)
    first = path.read_text().splitlines()[0]
    assert first == f"# python cli.py fit --config configs/{path.name}"
    code, out, err = run(*shlex.split(first)[3:], "--print_config")
    assert code == 0, err
    assert yaml.safe_load(out)["tag"] == path.stem


# What must not be executed ----------------------------------------------------------------------


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_malicious_checkpoint_is_passed_over_and_not_executed(run, half, tmp_path):
    victim, last = tmp_path / "executed", half / "checkpoints/last.ckpt"
    checkpoint = torch.load(last)
    last.unlink()  # which may be the best one's other name
    torch.save({**checkpoint, "x": Malicious(victim)}, last)
    code, _, err = run("fit", "--ckpt_path", half, "--trainer.max_steps=12")
    assert (code, err) == (0, f"{last} is no checkpoint of Lightning: passed over\n")
    assert not victim.exists()


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_malicious_file_is_refused_and_not_executed(run, half, config, tmp_path, command):
    victim, path = tmp_path / "executed", tmp_path / "a.ckpt"
    checkpoint = torch.load(half / "checkpoints/last.ckpt")
    torch.save({**checkpoint, "x": Malicious(victim)}, path)
    code, _, err = run(command, "--ckpt_path", path, "--config", config)
    assert code == 2
    assert f"error: {path} can't be read as a checkpoint of Lightning" in err
    assert not victim.exists()


def test_a_checkpoint_is_fetched_from_nowhere(run, config):
    code, _, err = run("fit", "--config", config, "--ckpt_path", "http://127.0.0.1:9/a.ckpt")
    assert code == 2
    assert "there is no such session folder or checkpoint file" in err


def test_a_config_executes_nothing(run, config, tmp_path):
    victim = tmp_path / "executed"
    config.write_text(f'tag: !!python/object/apply:os.system ["touch {victim}"]\n')
    code, _, err = run("fit", "--config", config)
    assert code == 2
    assert "could not determine a constructor for the tag" in err
    assert not victim.exists()


def test_a_checkpoint_of_another_model_is_refused_with_the_shapes(run, half):
    before = contents(half)
    flags = ("--model=test_cli.WideModule", "--trainer.max_steps=12")
    code, _, err = run("fit", "--ckpt_path", half, *flags)
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("error: the checkpoint is of another model: ")
    assert "`model.0.weight` is (8, 4) in the checkpoint, (9, 4) in the model" in last
    checkpoints = {name: content for name, content in contents(half).items() if "ckpt" in str(name)}
    assert checkpoints.items() <= before.items()
