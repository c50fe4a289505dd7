"""What a run leaves, shows and gives back, in this process and in one of its own."""

import logging
import os
import shlex
import signal
import sys
import warnings
from typing import ClassVar

import pytest
import torch
import yaml
from conftest import CONFIG, ROOT, TinyData, run_process
from lightning.pytorch.callbacks import Callback
from tiny import logged, names, same, settings, use_descriptors, weights

from lightning_trainer.start.cli import run_trainer


class Talks(TinyData):
    def create_data(self) -> None:
        super().create_data()
        print("a print of the project's own")
        warnings.warn("a warning of the project's own", stacklevel=1)
        os.write(2, b"bytes from below Python\n")


def test_a_run_leaves_the_files_of_the_design_and_nothing_else(whole):
    assert names(whole) - {"uncommitted.patch"} == {
        *("config.yaml", "log.txt", "environment.yaml", "run.json", "metrics.csv", "events.out"),
        "packages.txt",
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
        "class_path": "tiny.Echo",
        "init_args": {
            **{"learning_rate": 0.01, "schedule": "none"},
            **{"vis_iterations": 500, "score_name": None, "score_mode": None},
            **{"channels_last": False, "compile": False, "fused": True},
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


class TellsTorch(Callback):
    """Notes what torch was told."""

    seen: ClassVar[list] = []

    def on_train_start(self, *_) -> None:
        self.seen.append(told())


def told() -> tuple:
    deterministic = torch.are_deterministic_algorithms_enabled()
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, deterministic


def test_what_torch_is_told_holds_for_the_run_and_its_session_and_is_given_back(
    run, config, sessions
):
    before, TellsTorch.seen[:] = told(), []
    keys = ["--matmul_precision=high", "--trainer.benchmark=true"]
    short = ["--trainer.max_steps=4", f"--trainer.callbacks={__name__}.TellsTorch"]
    assert run("fit", "--config", config, *keys, *short)[0] == 0
    assert told() == before == ("highest", False, False)
    assert settings(sessions()[0])["matmul_precision"] == "high"
    assert settings(sessions()[0])["trainer"]["benchmark"] is True
    deterministic = ["--trainer.max_steps=8", "--trainer.deterministic=true"]
    assert run("fit", "--ckpt_path", sessions()[0], *deterministic)[0] == 0
    assert told() == before
    # What is tuned by time is not deterministic.
    assert TellsTorch.seen == [("high", True, False), ("high", False, True)]
    assert run("fit", "--config", config, *short, "--trainer.fast_dev_run=1")[0] == 0
    assert TellsTorch.seen[2:] == [before]


def test_a_precision_that_a_projects_file_sets_holds_where_the_key_is_not_given(
    run, config, tmp_path, monkeypatch
):
    file = tmp_path / "sets_high.py"
    file.write_text(
        f"import torch\nfrom {__name__} import TellsTorch as Tells\n"
        "torch.set_float32_matmul_precision('high')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before, TellsTorch.seen[:] = told(), []
    short = ("--trainer.fast_dev_run=1", "--trainer.callbacks=sets_high.Tells")
    for key in ((), ("--matmul_precision=medium",)):
        assert run("fit", "--config", config, *short, *key)[0] == 0
        assert told() == before
    assert [precision for precision, *_ in TellsTorch.seen] == ["high", "medium"]


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch 2.9 brought the flag"
)
def test_a_newer_flag_of_torch_that_was_set_before_stays(run, config):
    before = torch.get_float32_matmul_precision()
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert run("fit", "--config", config, "--trainer.fast_dev_run=1")[0] == 0
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)


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
    files = {"config.yaml", "log.txt", "environment.yaml", "packages.txt", "run.json"}
    assert names(session) - {"uncommitted.patch"} == files


def test_the_session_of_another_command_says_how_to_run_that_again(run, config, whole, sessions):
    code, _, err = run("test", "--config", config, "--ckpt_path", whole)
    assert code == 0, err
    [second] = sessions()
    command = shlex.split((second / "config.yaml").read_text().splitlines()[0])
    assert command[:3] == ["#", "python", "cli.py"]
    code, _, err = run(*command[3:-1], second / command[-1])
    assert code == 0, err


# What is given back -------------------------------------------------------------------------------


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
        (1, ["--model", "tiny.Breaks"]),
        (1, ["--data", "tiny.NoFiles"]),
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
            run_trainer(arguments)
        assert caught.value.code == code
    else:
        run_trainer(arguments)
    after = state()
    assert {key for key in before if before[key] != after[key]} == set()


# A process of its own -----------------------------------------------------------------------------


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


# The configs of the repository --------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_first_line_of_a_config_is_the_command_that_runs_it(run, monkeypatch, path):
    monkeypatch.chdir(ROOT)
    first = path.read_text().splitlines()[0]
    command, _, weights = first.partition(" --init_from ")
    assert command == f"# python cli.py fit --config configs/{path.name}"
    assert bool(weights) == (path.stem == "finetune")
    code, out, err = run(*shlex.split(command)[3:], "--print_config")
    assert code == 0, err
    assert yaml.safe_load(out)["tag"] == path.stem
