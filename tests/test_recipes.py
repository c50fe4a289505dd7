"""What docs/recipes.md and docs/sweeps.md promise is what happens."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pages
import pytest
import torch
import yaml
from conftest import ROOT, run_process
from forks import make_python

RECIPES = (ROOT / "docs/recipes.md").read_text()
PAGE_OF = {"sweep": "sweeps", "search": "sweeps"}  # all others: recipes
SMALL = "--trainer.max_steps 20 --trainer.val_check_interval 10"


def block_after(mark: str) -> str:
    """The code block that follows an HTML comment."""
    return pages.block_after(f"docs/{PAGE_OF.get(mark, 'recipes')}.md", mark)


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder as the repository's, whose `python` is this one."""
    for name in ("cli.py", "configs", "projects", "scripts", "lightning_trainer"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    make_python(tmp_path / "bin/python")
    return tmp_path


def sh(script: str, place: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "PATH": f"{place}/bin:{os.environ['PATH']}", "PYTHONPATH": str(place)}
    return subprocess.run(
        ["bash", "-c", script], cwd=place, env=env, capture_output=True, text=True
    )


def listed(folder: Path, place: Path) -> dict:
    rows = json.loads(run_process("sessions", place / folder, "--format=json").stdout)
    return {row["tag"]: row for row in rows}


@pytest.mark.long
def test_a_sweep_goes_on_after_a_failure_and_ends_in_a_table(place):
    script = block_after("sweep").replace("1e-3 3e-3 1e-2", "1e-3 wrong 1e-2")
    script = script.replace("16 32", "16").replace("--model.width", f"{SMALL} --model.width")
    process = sh(script, place)
    assert "`model.init_args.learning_rate`" in process.stderr or "learning_rate" in process.stderr
    title, *rows = process.stdout.splitlines()[-3:]
    assert "learning_rate" in title
    assert sorted(row.split()[0].rpartition("_")[2] for row in rows) == ["lr1e-2-w16", "lr1e-3-w16"]
    assert all("finished" in row for row in rows)


def test_ctrl_c_ends_a_sweep(place):
    script = block_after("sweep").replace("python cli.py fit", "echo run; (exit 130) #")
    script = re.sub(r"\\\n.*", "", script).partition("python cli.py sessions")[0]
    assert sh(script, place).stdout == "run\n"


@pytest.mark.slow
def test_a_search_gives_a_session_for_each_trial_and_goes_on(place):
    pytest.importorskip("optuna")
    [command] = re.findall(r"^python (scripts/search.py .*)$", block_after("search"), re.M)
    options = (place / "scripts/search.py").read_text().replace("[8, 16, 32]", "[8]")
    (place / "scripts").unlink()
    (place / "scripts").mkdir()
    (place / "scripts/search.py").write_text(options)
    command = command.replace("--trials 20", "--trials 1").replace("200", "20")
    process = sh(f"python {command} --trainer.val_check_interval 10", place)
    assert process.returncode == 0, process.stderr
    best = listed("experiments/search", place)["trial0"]["best"]
    assert f"Best: {best:.4f} by trial0" in process.stdout
    process = sh(f"python {command} --trainer.val_check_intervall 10", place)  # fails
    assert process.returncode == 0, process.stderr
    assert "trial1 ended with exit code 2" in process.stderr
    assert f"Best: {best:.4f} by trial0" in process.stdout
    command = command.replace("--trials 1", "--trials 2 --output_path experiments/loss")
    process = sh(f"python {command} --model.score_name loss", place)
    rows = listed("experiments/loss", place)
    tag, best = min(((tag, row["best"]) for tag, row in rows.items()), key=lambda pair: pair[1])
    assert len(rows) == 2 and f"Best: {best:.4f} by {tag}" in process.stdout, process.stderr


@pytest.mark.slow
def test_averaged_weights_are_scored_and_tested(place):
    [command] = re.findall(r"^python (cli.py fit .*AverageWeights.*)$", RECIPES, re.M)
    process = sh(f"python {command} {SMALL}", place)
    assert (process.returncode, process.stderr) == (0, "")
    best = re.search(r"^Best score: +(\S+)", process.stdout, re.M)[1]
    [session] = (place / "experiments").iterdir()
    tested = sh(f"python cli.py test --ckpt_path {session}", place)
    assert (tested.returncode, tested.stderr) == (0, "")
    assert f"Test score (accuracy, higher is better): {float(best):.3f}\n" in tested.stdout


def test_mlflow_gets_every_number_and_the_settings(place):
    mlflow = pytest.importorskip("mlflow")
    shutil.copytree(ROOT / "configs", place / "c")
    (place / "c/digits_mlflow.yaml").write_text(block_after("mlflow"))
    [command] = re.findall(r"python (cli.py fit .*mlflow.yaml)$", block_after("mlflow"), re.M)
    (place / "experiments").mkdir()
    command = command.replace("configs/", "c/")
    process = sh(f"python {command} {SMALL} --trainer.log_every_n_steps 5", place)
    assert process.returncode == 0, process.stderr
    mlflow.set_tracking_uri(f"sqlite:///{place}/experiments/mlflow.db")
    [run] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FINISHED"
    assert {"train/loss", "val/loss", "val/accuracy", "timing/examples_per_s"} <= {
        *run.data.metrics
    }
    assert run.data.params["model.learning_rate"] == "0.003"
    [session] = (place / "experiments").glob("session_*")
    assert (session / "metrics.csv").exists()


@pytest.mark.long
def test_the_profile_recipe_writes_into_the_session_folder(place):
    [command] = re.findall(r"python (cli.py fit .*profiler simple [^`]*)`", RECIPES)
    process = sh(f"python {shlex.join(shlex.split(command))}", place)
    assert process.returncode == 0, process.stderr
    [session] = (place / "experiments").iterdir()
    assert "run_training_batch" in (session / "fit-profile.txt").read_text()


def test_the_yaml_of_a_logger_is_one():
    assert yaml.safe_load(block_after("mlflow"))["trainer"]["logger"]["init_args"]


HEADER = """
import torch
from torch import nn
from lightning_trainer import BaseDataModule, BaseModule
from conftest import TinyData, TinyModule
from projects.digits import DigitsModule
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Makes a module of a recipe's code that runs can name; returns its name."""

    def make(mark: str, more: str = "") -> str:
        name = f"recipe_{mark.replace(' ', '_')}"
        tmp_path.joinpath(f"{name}.py").write_text(HEADER + block_after(mark) + more)
        monkeypatch.syspath_prepend(tmp_path)
        return name

    return make


@pytest.mark.long
def test_a_backbone_is_frozen_and_thawed_and_a_restart_is_exact(run, tmp_path, recipe):
    kind = f"{recipe('finetune')}.Finetune"
    command = re.search(r"--trainer.callbacks\+ (\S+) (\S+) 2", RECIPES)
    common = ("--config", "configs/digits.yaml", "--output_path", tmp_path, "--model.width=4")
    short = ("--trainer.val_check_interval=12", "--trainer.log_every_n_steps=12")

    def fit(tag: str, *options: object) -> Path:
        code, _, err = run("fit", *options, "--trainer.accelerator=cpu", *short)
        assert code == 0, err
        [session] = tmp_path.glob(f"session_*_{tag}")
        return session

    before = fit("pre", *common, "--tag=pre", "--trainer.max_steps=12", "--trainer.callbacks=null")
    frozen = (*common, "--model", kind, "--init_from", before, "--data.batch_size=256")
    frozen = (*frozen, f"--trainer.callbacks={command[1]}", f"{command[2]}=2")
    first = fit("first", *frozen, "--tag=first", "--trainer.max_steps=12")
    begun = torch.load(before / "checkpoints/best.ckpt")["state_dict"]
    then = torch.load(first / "checkpoints/last.ckpt")["state_dict"]
    assert {n for n in begun if not torch.equal(begun[n], then[n])} == {
        "model.6.weight",
        "model.6.bias",
    }
    whole = fit("whole", *frozen, "--tag=whole", "--trainer.max_steps=24")
    for n in (18, 24):  # the first stop is before the thaw, the second after it
        assert fit("first", "--ckpt_path", first, f"--trainer.max_steps={n}") == first
    ends = [torch.load(s / "checkpoints/last.ckpt")["state_dict"] for s in (whole, first)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not any(torch.equal(begun[name], ends[0][name]) for name in begun)


KNOWS = """
class Knows(TinyData):
    def create_data(self) -> None:
        super().create_data()
        self.n_classes = 2

class Asks(TinyModule):
    def create_model(self) -> None:
        self.model = nn.Linear(4, self.trainer.datamodule.n_classes)
"""


def test_what_the_data_knows_is_known_in_all_commands_and_elsewhere_a_line_says_how(
    run, config, tmp_path, recipe, sessions
):
    text = 'text = "abba"\nGPT = lambda n_tokens: nn.Linear(n_tokens, 1)\n'
    name = recipe("data knows", f"{text}{KNOWS}")
    own = ("--model", f"{name}.Asks", "--data", f"{name}.Knows", "--trainer.max_steps=2")
    code, _, err = run("fit", "--config", config, *own)
    assert code == 0, err
    [session] = sessions()
    for command in ("test", "predict", "validate"):
        code, _, err = run(command, "--ckpt_path", session)
        assert code == 0, err
    project = importlib.import_module(name)
    known = SimpleNamespace(datamodule=SimpleNamespace(vocabulary=["a", "b"]))
    given = SimpleNamespace(trainer=known)
    project.Module.create_model(given)
    assert given.model.in_features == 2
    path = session / "checkpoints/best.ckpt"
    with pytest.raises(RuntimeError, match=r"`Asks.create_model` reads `self.trainer`, whi"):
        project.Asks.load_from_checkpoint(path)
    code = block_after("predict").replace(
        "experiments/session_.../checkpoints/best.ckpt", str(path)
    )
    names = {"pl": pl, "Module": project.Asks, "Data": project.Knows}
    exec(code, names)
    assert sum(len(output) for output in names["outputs"]) == 10
