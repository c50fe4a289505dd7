"""What needs no command is answered at once, without torch."""

import atexit
import gc
import os
import subprocess
import sys
from importlib import metadata

import pytest
from conftest import ROOT

from lightning_trainer.commands.registry import COMMANDS, HELP
from lightning_trainer.main import main, run_process
from lightning_trainer.session.environment import shown_command
from lightning_trainer.session.folder import go_on_command

WITHOUT_TORCH = (
    "import sys; from lightning_trainer.main import main; "
    "sys.modules['torch'] = sys.modules['lightning'] = None; main()"
)


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        (["--help"], 0, HELP, ""),
        (["-h"], 0, HELP, ""),
        (["--version"], 0, f"lightning_trainer {metadata.version('lightning_trainer')}\n", ""),
        (
            ["fit", "--config", "no.yaml"],
            2,
            "",
            "error: `--config` is 'no.yaml': there is no such file\n"
            "(more: python cli.py fit --help)\n",
        ),
        (
            ["sesions"],
            2,
            "",
            f"error: there is no command `sesions`: the commands are {', '.join(COMMANDS)}. "
            "Did you mean `sessions`?\n"
            "(more: python cli.py --help)\n",
        ),
        (
            ["foo"],
            2,
            "",
            f"error: there is no command `foo`: the commands are {', '.join(COMMANDS)}\n"
            "(more: python cli.py --help)\n",
        ),
        (
            [],
            2,
            "",
            f"{HELP}\nerror: no command before the options: give one, e.g. `fit`\n"
            "(more: python cli.py --help)\n",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_version_and_mistakes_take_no_import_of_torch(arguments, code, out, err):
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, out, err)


@pytest.mark.parametrize(
    ("arguments", "variables", "told"),
    [
        ("fit", {}, "Starting `fit`: torch and lightning are imported\n"),
        ("check", {"LOCAL_RANK": "0"}, "Starting `check`: torch and lightning are imported\n"),
        ("fit --print_config", {}, ""),
        ("fit --print_config=skip_null", {}, ""),
        ("fit --model.help=a.B", {}, ""),
        ("fit --help", {}, ""),
        ("check --format json", {}, ""),
        ("schema --output -", {}, ""),
        ("schema", {}, "Starting `schema`: torch and lightning are imported\n"),
        ("fit", {"LOCAL_RANK": "1"}, ""),
    ],
)
def test_a_start_gives_a_sign_of_life_before_the_slow_imports(arguments, variables, told):
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments.split(), "--config=configs/digits.yaml"],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert ended.stdout == told


def test_the_end_of_the_program_is_not_delayed_by_a_search_for_garbage(monkeypatch, capfd):
    registered = []
    monkeypatch.setattr("atexit.register", registered.append)
    monkeypatch.setattr(sys, "argv", ["cli.py", "--version"])
    main()
    assert registered == [gc.disable]
    registered.clear()
    main(["--version"])  # called by another program
    assert registered == []


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["--versio"], "`--version`"),
        (["--hlep"], "`--help`"),
        (["predictt"], "`predict`"),
        (["comapre", "a", "b"], "`compare`"),
        (["verfy", "--config", "x.yaml"], "`verify`"),
    ],
)
def test_near_names_are_those_of_all_commands(run, arguments, near):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[0].endswith(f"Did you mean {near}?")


@pytest.mark.parametrize("arguments", [["--tag", "x", "fit"], ["--config", "x.yaml"]])
def test_an_option_before_the_command_is_one_message(run, arguments):
    assert run(*arguments) == (
        2,
        "",
        "error: no command before the options: give one, e.g. `fit`\n"
        "(more: python cli.py --help)\n",
    )


@pytest.mark.parametrize("module", ["lightning_trainer", "lightning_trainer.main"])
def test_the_package_itself_can_be_started(module, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", module, "new", "shapes"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "shapes/module.py").exists()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"a: 1\nb: [1, 2\nc: 3\n", "which is not YAML in line 3: "),
        (b"a: 1\n\tb: 2\n", "which is not YAML in line 2: "),
        (b"a: \xff\n", "which is not YAML: "),
        (b"a: \x00\n", "which is not YAML"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "verify"])
def test_a_file_that_is_not_yaml_is_named_with_the_line(run, tmp_path, content, fault, command):
    (tmp_path / "fine.yaml").write_text("tag: a\n")
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    code, out, err = run(command, "--config", tmp_path / "fine.yaml", f"--config={path}")
    assert (code, out, len(err.splitlines())) == (2, "", 2)
    assert err.startswith(f"error: `--config` is {str(path)!r}, {fault}")
    assert "unicode string" not in err


def test_the_recorded_command_is_the_one_that_started_the_package(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "lightning_trainer/__main__.py"), "fit"])
    assert shown_command(["fit"]) == "python -m lightning_trainer fit"
    assert go_on_command("test", ROOT / "a b") == (
        f"python -m lightning_trainer test --ckpt_path '{ROOT / 'a b'}'"
    )


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("LIGHTNING_TRAINER_TAG", "tag"),
        ("LIGHTNING_TRAINER_FIT__TRAINER__MAX_STEPS", "trainer.max_steps"),
        ("LIGHTNING_TRAINER_MODEL__LEARNING_RATE", "model.learning_rate"),
    ],
)
def test_a_setting_in_the_environment_is_refused(run, config, monkeypatch, name, option):
    monkeypatch.setenv(name, "a")
    code, out, err = run("fit", "--config", config)
    assert (code, out) == (2, "")
    assert err.splitlines()[0].endswith(f'unset it, and give --{option} "${name}"')


def test_other_variables_are_let_alone(run, monkeypatch):
    monkeypatch.setenv("LIGHTNING_TRAINER_SESSION", "a")
    monkeypatch.setenv("LIGHTNING_TRAINER_HOME", "a")
    assert run("fit", "--config", "no.yaml")[2].startswith("error: `--config` is 'no.yaml'")
    assert run("fit", "--tag", "a b")[2].startswith("error: ")
    assert "environment" not in run("fit", "--tag", "a b")[2]


def test_from_python_it_returns_the_session(config):
    trained = main(["fit", "--config", str(config), "--trainer.max_steps=5"])
    assert (trained.iteration, trained.score_name) == (5, "val/accuracy")
    assert main(["validate", "--ckpt_path", str(trained.path)]).path == trained.path


def test_a_process_of_its_own_returns_nothing_to_its_console_script(config, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["cli.py", "fit", f"--config={config}", "--trainer.max_steps=1"]
    )
    assert main() is None
    monkeypatch.undo()
    atexit.unregister(gc.disable)


@pytest.fixture
def ended(monkeypatch):
    """The exit codes with which `run_process` has ended the process at once."""
    codes: list[int] = []
    monkeypatch.setattr("lightning_trainer.internals_of_ends.end_process", codes.append)
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    return codes


@pytest.mark.parametrize(
    ("code", "at_once"), [(0, [0]), (None, [0]), (143, [143]), ("a message", [])]
)
def test_the_process_ends_at_once_with_its_exit_code(monkeypatch, ended, code, at_once):
    monkeypatch.setattr("lightning_trainer.main.main", lambda: sys.exit(code))
    with pytest.raises(SystemExit) as end:
        run_process()
    assert (end.value.code, ended) == (code, at_once)


@pytest.mark.parametrize("why", ["trace", "profile", "several processes", "no torch"])
def test_it_ends_as_python_does_where_something_follows(monkeypatch, ended, why):
    monkeypatch.setattr("lightning_trainer.main.main", lambda: None)
    if why == "several processes":
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    elif why == "no torch":
        monkeypatch.delitem(sys.modules, "torch")
    else:
        monkeypatch.setattr(sys, f"get{why}", lambda: print)
    with pytest.raises(SystemExit):
        run_process()
    assert not ended


def test_an_error_ends_as_python_does(monkeypatch, ended):
    monkeypatch.setattr("lightning_trainer.main.main", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_process()
    assert not ended


@pytest.mark.skipif(sys.dont_write_bytecode, reason="each start compiles the library")
@pytest.mark.parametrize(
    "words", ["", "--help", "--version", "fitt", "completion --words fit --config configs/digits.y"]
)
def test_what_needs_no_torch_takes_little_of_a_processor(words):
    def seconds() -> float:
        before = os.times()
        subprocess.run([sys.executable, "cli.py", *words.split()], cwd=ROOT, capture_output=True)
        after = os.times()
        return after[2] + after[3] - before[2] - before[3]

    assert min(seconds() for _ in range(3)) < 0.15
