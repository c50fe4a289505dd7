"""What a shell offers is what the program takes; `python tests/commands/test_completion.py` writes
the list of options anew.
"""

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_trainer.commands import completion
from lightning_trainer.commands.completion import complete
from lightning_trainer.commands.registry import COMMANDS
from lightning_trainer.main import main

OPTION = re.compile(
    r"^ +(?:(-\w) \w+, )?(--[\w.+]+)(?:[ =]\x08?(\{.*?\}|[^ \n].*?))?(?:  .*)?$", re.MULTILINE
)
LIST = Path(completion.__file__).parent / "templates/options.txt"
OLD = "experiments/session_n1_2024_02_29_12_00_00_lr3e-3"
NEW = "experiments/session_n1_2025_02_28_12_00_00_wide"


def options_in_help(command: str) -> str:
    """The options that `--help` lists, as a line of the file."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([command, "--help"])
    words = []
    for short, name, value in OPTION.findall(out.getvalue()):
        choices = re.fullmatch(r"\{(.*)\}", value)
        takes = "" if not value or value.startswith("[=") else "="
        end = f"={choices[1]}" if choices else takes
        words += [f"{option}{end}" for option in (short, name) if option]
    return f"{command}: {' '.join(dict.fromkeys(words))}"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_of_options_is_that_of_the_help(command):
    lines = LIST.read_text().splitlines()
    assert options_in_help(command) in lines, "python tests/commands/test_completion.py"
    assert len(lines) == len(COMMANDS)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with two configs and two sessions."""
    monkeypatch.chdir(tmp_path)
    for folder in ("configs/more", OLD, NEW, "experiments/other"):
        Path(folder).mkdir(parents=True)
    text = "tag: a\nmodel:\n  class_path: x.Y\n  init_args:\n    width: 3\n    rate: 0.1\n"
    Path("configs/a.yaml").write_text(text)
    Path("configs/b c.yml").touch()
    Path("configs/notes.txt").touch()
    Path(OLD, "config.yaml").write_text("data:\n  init_args: {noise: 1}\n")
    return tmp_path


def offered(line: str) -> list[str]:
    """What may follow a line of words, without descriptions; a dot stands for nothing typed."""
    return [word.partition("\t")[0] for word in complete([w.strip(".") for w in line.split(" ")])]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (".", ["words", *COMMANDS]),
        ("fi", ["words", *COMMANDS]),
        ("fit --config .", ["paths", "configs/a.yaml", "configs/b c.yml", "configs/more/"]),
        ("fit -c configs/b", ["paths", "configs/b c.yml"]),
        ("fit --config=configs/a", ["paths", "--config=configs/a.yaml"]),
        ("fit --config = configs/a", ["paths", "configs/a.yaml"]),
        ("fit --config =", ["paths", "configs/a.yaml", "configs/b c.yml", "configs/more/"]),
        ("test --ckpt_path .", ["paths", NEW, OLD]),
        ("test --ckpt_path lr", ["paths", OLD]),
        ("test --ckpt_path=wi", ["paths", f"--ckpt_path={NEW}"]),
        ("test --ckpt_path experiments/session_n1_2024", ["paths", OLD]),
        ("fit --init_from nothing", ["paths"]),
        ("compare lr3e-3 .", ["paths", NEW, OLD]),
        ("export w", ["paths", NEW]),
        ("fit --on_non_finite .", ["words", "stop", "skip"]),
        (
            "sessions --format=",
            ["words", *(f"--format={f}" for f in ["table", "csv", "json", "markdown"])],
        ),
        ("sessions --format =", ["words", "table", "csv", "json", "markdown"]),
        ("fit --output_path .", ["files"]),
        ("compare --output .", ["files"]),
        ("sessions .", ["files"]),
        ("export --onnx .", ["paths", NEW, OLD]),
        ("completion .", ["words", "bash", "zsh", "fish"]),
        ("new .", ["words"]),
        ("nonsense --config", ["words", "--help"]),
    ],
)
def test_each_place_of_a_line_has_its_own_words(here, line, found):
    assert offered(line) == found


def test_the_keys_of_the_config_and_the_session_are_options(here):
    assert "--trainer.max_steps" in offered("fit --m")
    assert {"--model.width", "--model.rate", "--tag"} <= {
        *offered("fit --config configs/a.yaml --")
    }
    assert "--data.noise" in offered(f"test --ckpt_path {OLD} --")
    assert {"--model.width", "--format"} <= {*offered("check --config configs/a.yaml -")}


def test_a_name_that_a_terminal_would_obey_is_not_offered(here):
    Path(f"{NEW}\n\x1b[2J").mkdir()
    Path("configs/\x1b.yaml").touch()
    assert offered("test --ckpt_path .") == ["paths", NEW, OLD]
    assert offered("fit -c configs/\x1b") == ["paths"]


def test_where_nothing_can_be_read_nothing_is_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_bytes(b"a: [\xff")
    assert offered("test --ckpt_path .") == ["paths"]
    assert "--trainer.max_steps" in offered("fit --config bad.yaml --")
    assert "--trainer.max_steps" in offered("fit --config missing.yaml --")


BASH = """
source ./script
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
compopt() {{ echo "compopt $*" >&2; }}
$(complete -p {program} | sed 's/.*-F //; s/ .*//') 2>told
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("lightning-trainer com", ["compare", "completion"]),
        ("lightning-trainer test --ckpt_path lr", [OLD]),
        ("python cli.py sess", ["sessions"]),
        ("python -m lightning_trainer fit --config = configs/b", ["configs/b c.yml"]),
        ("python ../x/cli.py fit --config configs/a.yaml --model.w", ["--model.width"]),
        ("python other.py fi", [""]),
    ],
)
def test_a_real_bash_completes(here, capfd, words, found):
    Path("yaml.py").write_text("open('executed', 'w')")  # as all that lies in the current folder
    Path("cli.py").write_text("open('executed', 'w')")
    assert main_code("completion", "bash") == 0
    Path("script").write_text(capfd.readouterr().out)
    script = BASH.format(words=words, program=shlex.split(words)[0])
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True)
    assert (done.stdout.splitlines() or [""], done.stderr) == (found, "")
    assert not Path("executed").exists()


def main_code(*argv: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main([*argv])
    return ended.value.code


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_scripts_of_other_shells_have_no_mistake(capfd, tmp_path, shell):
    assert main_code("completion", shell) == 0
    (tmp_path / "script").write_text(out := capfd.readouterr().out)
    assert "ASK" not in out and "WITH_PYTHON" not in out
    if program := shutil.which(shell):
        subprocess.run([program, "-n", tmp_path / "script"], check=True)


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_a_real_fish_completes(here, capfd):
    assert main_code("completion", "fish") == 0
    Path("script").write_text(capfd.readouterr().out)
    lines = ["lightning-trainer comp", "python cli.py test --ckpt_path lr", "python -m json "]
    told = [
        subprocess.run(
            ["fish", "-N", "-c", f"source ./script; complete -C '{line}'"],
            capture_output=True,
            text=True,
        ).stdout
        for line in lines
    ]
    assert told[0].startswith("compare\t") and told[1] == f"{OLD}\n" and "fit" not in told[2]


def test_it_takes_no_import_of_torch(here):
    code = (
        "import sys; from lightning_trainer.commands.completion import complete\n"
        "assert list(complete(['fit', '--config', 'configs/a.yaml', '--']))\n"
        "assert not {'torch', 'lightning', 'jsonargparse', 'numpy'} & {*sys.modules}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    LIST.write_text("".join(f"{options_in_help(command)}\n" for command in COMMANDS))
