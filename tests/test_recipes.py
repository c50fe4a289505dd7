"""What docs/recipes.md promises is what happens."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run_process
from forks import make_python

RECIPES = (ROOT / "docs/recipes.md").read_text()
SMALL = "--trainer.max_steps 20 --trainer.val_check_interval 10"


def block_after(mark: str) -> str:
    """The code block that follows an HTML comment."""
    return re.search(rf"<!-- {mark} -->\s*```\w*\n(.*?)```", RECIPES, re.DOTALL)[1]


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


def test_the_profile_recipe_writes_into_the_session_folder(place):
    [command] = re.findall(r"python (cli.py fit .*profiler simple [^`]*)`", RECIPES)
    process = sh(f"python {shlex.join(shlex.split(command))}", place)
    assert process.returncode == 0, process.stderr
    [session] = (place / "experiments").iterdir()
    assert "run_training_batch" in (session / "fit-profile.txt").read_text()


def test_the_yaml_of_a_logger_is_one():
    assert yaml.safe_load(block_after("mlflow"))["trainer"]["logger"]["init_args"]
