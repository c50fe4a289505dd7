"""Options win over files, and files over what is stored."""

import csv
from pathlib import Path

import lightning.pytorch as pl
import pytest
import yaml
from tiny import contents, logged, names, settings


class Counter(pl.Callback):
    """A callback of the user's own."""

    n_batches = 0

    def on_train_batch_end(self, *args, **kwargs) -> None:
        Counter.n_batches += 1


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


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("tag: a-${NAME}", "tag"),
        ("output_path: ${oc.env:HOME}/x", "output_path"),
        ("model: {init_args: {schedule: '${NAME}'}}", "model.schedule"),
        (
            "trainer: {callbacks: [{class_path: a.B, init_args: {x: ['${NAME}']}}]}",
            "trainer.callba",
        ),
    ],
)
def test_variables_in_a_file_are_refused_and_not_taken_as_they_stand(
    run, config, sessions, tmp_path, text, key
):
    (tmp_path / "more.yaml").write_text(text.replace("a.B", f"{Path(__file__).stem}.Takes"))
    code, _, err = run("fit", "--config", config, "--config", tmp_path / "more.yaml")
    assert code == 2 and sessions() == []
    assert err.startswith(f"error: `{key}") and " in it, and settings have no variables" in err


class Takes(pl.Callback):
    def __init__(self, x: list) -> None:
        self.x = x
