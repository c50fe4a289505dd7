"""The wheel alone, in an empty folder and an environment that has what it requires and no more."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow

REQUIREMENT = re.compile(r"([\w.-]+)(?:\[([\w,]+)\])?")


def sh(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs a command that knows no environment but that of its own path."""
    command = [str(word) for word in words]
    env = {"PATH": f"{Path(command[0]).parent}:/usr/bin:/bin", "HOME": str(Path.home())}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def required(name: str, extras: tuple[str, ...] = ()) -> set[str]:
    """The names of the packages that a package requires, and all that those require."""
    found, waiting = set[str](), [(name, extras)]
    while waiting:
        name, extras = waiting.pop()
        if name in found:
            continue
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform
            continue
        found.add(name)
        for line in lines:
            extra = re.search(r"extra == ['\"](.+?)['\"]", line)
            if extra is None or extra[1] in extras:
                match = REQUIREMENT.match(line)
                waiting.append((match[1], tuple((match[2] or "").split(","))))
    return found


def link_packages(names: set[str], site: Path) -> None:
    """Links to what the running environment has of these packages."""
    for name in names:
        for file in metadata.files(name) or ():
            top = file.parts[0]
            source, target = Path(metadata.distribution(name).locate_file(top)), site / top
            if top not in ("..", "__pycache__") and not target.exists() and source.exists():
                target.symlink_to(source)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    built = sh(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    assert built.returncode == 0, built.stderr
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def bin_folder(wheel, tmp_path_factory) -> Path:
    """The programs of an environment with the wheel and what it requires."""
    venv = tmp_path_factory.mktemp("venv")
    sh(sys.executable, "-m", "venv", "--without-pip", venv)
    [site] = venv.glob("lib/*/site-packages")
    link_packages(required("lightning_trainer") - {"lightning_trainer"}, site)
    python = venv / "bin/python"
    done = sh(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel)
    assert done.returncode == 0, done.stderr
    return venv / "bin"


@pytest.mark.parametrize("way", ["lightning-trainer", "python -m lightning_trainer"])
@pytest.mark.parametrize("layout", ["", "src/paper"])
def test_a_project_of_ones_own_begins_in_an_empty_folder(bin_folder, tmp_path, way, layout):
    if layout:
        (tmp_path / layout).mkdir(parents=True)
        (tmp_path / layout / "__init__.py").touch()
    program, *module = way.split()

    def run(*words: str) -> str:
        done = sh(bin_folder / program, *module, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    made = run("new", "mine")
    assert f"{way} fit --config configs/mine.yaml\n" in made.replace(f"{bin_folder}/", "")
    out = run("fit", "--config", "configs/mine.yaml", "--trainer.max_steps", "2")
    again = re.search(r"To go on: +(.*) --trainer.max_steps N", out)[1]
    assert again.startswith(f"{way} fit --ckpt_path experiments/session_")
    if layout or module:  # the rest is the same
        return
    assert "0 certain mistakes" in run("check", "--config", "configs/mine.yaml")
    assert "mine" in run("sessions")
    assert "Test score" in run("test", "--ckpt_path", again.split()[-1])


def test_a_package_that_an_option_needs_is_named_with_its_extra(bin_folder, tmp_path):
    sh(bin_folder / "lightning-trainer", "new", "mine", cwd=tmp_path)
    options = ["--config", "configs/mine.yaml", "--notify", "ntfy://a"]
    done = sh(bin_folder / "lightning-trainer", "fit", *options, cwd=tmp_path)
    assert done.returncode == 2
    told = '`--notify` needs apprise: `pip install "lightning_trainer[notify]"`'
    assert done.stderr == f"error: {told}\n(more: lightning-trainer fit --help)\n"
