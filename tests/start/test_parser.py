"""What is wrong on a command line or in a file is said in a few lines, before anything is made."""

import sys

import pytest
import torch
import yaml
from conftest import ROOT, BaseModule, TinyData, TinyModule

from lightning_trainer.start.parser import class_options


class KeywordsOnly(TinyModule):
    def __init__(self, depth: int = 2, **kwargs) -> None:
        super().__init__(**kwargs)


class TakesNothing(TinyModule):
    def __init__(self) -> None:
        super().__init__()

    def create_optimiser(self) -> None:
        self.optimiser = torch.optim.Adam(self.model.parameters())


class DataTakesNothing(TinyData):
    def __init__(self) -> None:
        super().__init__(batch_size=2)


class DataTakesKeywords(TinyData):
    def __init__(self, **kwargs) -> None:
        super().__init__()


@pytest.fixture
def refuse(run, config, sessions, tmp_path, monkeypatch):
    """Runs what must be refused: returns the message, after what holds for each of them."""
    monkeypatch.chdir(tmp_path)

    def refuse_(*args: object, config: object = config) -> str:
        files = ["--config", config] if config else []
        code, out, err = run(*args[:1], *files, *args[1:])
        assert code == 2, err
        assert out == ""
        assert len(err.splitlines()) <= 3, err
        assert "Traceback" not in err
        assert err.startswith("error: ")
        assert err.splitlines()[-1].startswith("(more: python cli.py ")
        assert err.splitlines()[-1].endswith("--help)")
        assert sessions() == []
        return err.splitlines()[0]

    return refuse_


@pytest.mark.parametrize(
    ("option", "near"),
    [
        ("--trainer.max_stepz", "trainer.max_steps"),
        ("--trainer.max_step", "trainer.max_steps"),  # an abbreviation is no name
        ("--ta", "tag"),
        ("--outputpath", "output_path"),
        ("--ckpt-path", "ckpt_path"),
        ("--model.learning_rat", "learning_rate"),
        ("--model.init_args.vis_iteration", "vis_iterations"),
        ("--data.n_worker", "n_workers"),
        ("--xyzzy", None),
    ],
)
@pytest.mark.parametrize("form", ["separate", "joined"])
def test_a_misspelt_option_is_refused_with_the_near_name(refuse, option, near, form):
    message = refuse("fit", *([option, "3"] if form == "separate" else [f"{option}=3"]))
    assert option.split(".")[-1].lstrip("-") in message
    assert "Did you mean" in message if near else "Did you mean" not in message
    assert near is None or f"`{near}`" in message


def test_a_file_without_its_option_is_told_with_it(refuse):
    assert refuse("fit", "configs/a.yaml", config=None).endswith(
        "unrecognized arguments: configs/a.yaml. Did you mean `--config configs/a.yaml`?"
    )


def test_an_option_of_a_projects_class_is_told_where_it_belongs(refuse):
    message = refuse("fit", "--learning_rate", "0.1")
    assert "are `--model.learning_rate` and `--data.learning_rate`" in message


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("trainr:\n  max_steps: 3", "trainer.max_steps"),
        ("tags: a", "tag"),
        ("trainer:\n  max_stepz: 3", "trainer.max_steps"),
        ("model:\n  init_args:\n    learning_rat: 1", "learning_rate"),
        ("model:\n  init_arg:\n    learning_rate: 1", None),
        ("data:\n  init_args:\n    batchsize: 1", "batch_size"),
    ],
)
def test_a_misspelt_key_of_a_file_is_refused_with_the_near_name(refuse, tmp_path, text, near):
    (tmp_path / "more.yaml").write_text(text)
    message = refuse("fit", "--config", "more.yaml")
    assert near is None or f"Did you mean `{near}`" in message


def test_a_misspelt_argument_behind_keywords_is_refused_with_the_names_of_all_bases(refuse):
    model = ["--model", f"{__name__}.KeywordsOnly"]
    assert "`depth`" in refuse("fit", *model, "--model.dept", "1")
    assert "`score_name`" in refuse("fit", *model, "--model.score_nam", "1")


def test_the_whole_message_is_one_line_and_where_to_read_more(run, config):
    assert run("fit", "--config", config, "--outputpath", "x") == (
        2,
        "",
        "error: unrecognized arguments: --outputpath x. "
        "Did you mean `output_path` or `ckpt_path`?\n(more: python cli.py fit --help)\n",
    )


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("trainer.max_steps", "int"),
        ("model.learning_rate", "float"),
        ("data.batch_size", "int"),
        ("save_minutes", "float"),
        ("trainer.accumulate_grad_batches", "int"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_name_type_and_value(refuse, option, wanted):
    message = refuse("fit", f"--{option}", "many")
    assert option.split(".")[-1] in message
    assert wanted in message
    assert "many" in message


@pytest.mark.parametrize("key", ["tag", "output_path"])
@pytest.mark.parametrize("value", ["3", "1e3", "true", "null", "[a, b]"])
def test_a_name_that_yaml_reads_as_no_text_is_refused_or_made_text(
    run, config, tmp_path, monkeypatch, key, value
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.yaml").write_text(f"{key}: {value}")
    files = ["--config", config, "--config", "more.yaml"]
    code, _, err = run("fit", *files, "--trainer.fast_dev_run", "1")
    assert "Traceback" not in err
    if code:
        assert code == 2
        assert f"`{key}`" in err
        assert len(err.splitlines()) <= 3
    elif key == "tag":
        assert list(tmp_path.glob(f"experiments/session_*_{value}"))
    else:
        assert list(tmp_path.glob(f"{value}/session_*"))


@pytest.mark.parametrize(
    "text",
    ["a: [", "\t:", "just text", "- a\n- b", ""],
    ids=["open", "tab", "text", "list", "empty"],
)
def test_a_file_that_is_no_config_is_refused(refuse, tmp_path, text):
    (tmp_path / "more.yaml").write_text(text)
    assert "config" in refuse("fit", "--config", "more.yaml")


def test_a_group_that_is_no_mapping_is_refused(refuse, tmp_path):
    (tmp_path / "more.yaml").write_text("trainer: 3")
    assert "trainer" in refuse("fit", "--config", "more.yaml")


def test_a_file_that_is_not_there_is_named(refuse):
    assert "missing.yaml" in refuse("fit", "--config", "missing.yaml")


@pytest.mark.parametrize(
    ("class_path", "named"),
    [
        ("nowhere.Model", "No module named 'nowhere'"),
        ("conftest.Nope", "no attribute 'Nope'"),
        ("conftest.TinyModel", "Did you mean `TinyModule`"),
        ("projects.digit.DigitsModule", "Did you mean `digits`"),
        ("conftest.TinyData", "conftest.TinyData"),
        ("Nope", "Nope"),
    ],
)
def test_a_class_that_is_not_there_or_no_model_is_named(refuse, class_path, named):
    message = refuse("fit", "--model", class_path)
    assert "`model`" in message
    assert named in message


def test_a_trainer_without_checkpoints_and_validations_is_refused(refuse):
    message = refuse("fit", "--trainer.barebones=true")
    assert message.startswith("error: `trainer.barebones` is True, ") and "leave it out" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "conftest.TinyData"],
            "`model` is conftest.TinyData, which belongs below `data`",
        ),
        (
            ["--data", "conftest.TinyModule"],
            "`data` is conftest.TinyModule, which belongs below `model`",
        ),
        (
            ["--model", "projects.digits"],
            "`model` is projects.digits, a module: name the class in it, "
            "projects.digits.DigitsModule",
        ),
        (["--data", "json.decoder"], "`data` is json.decoder, a module: name the class in it, a "),
        (
            ["--model", "torch.nn.Linear"],
            "`model` is torch.nn.Linear, which is no BaseModule: derive it from",
        ),
        (["--config", "{model: {init_args: {width: 3}}}"], "`model` names no class of a project: "),
        (
            ["--data", "test_parser.DataTakesNothing", "--data.batch_size", "3"],
            "`data`: Problem with given class_path 'test_parser.DataTakesNothing': Option "
            "'batch_size' is not accepted: let `__init__` take **kwargs, and call",
        ),
        (
            ["--model", "conftest.nothere.Module"],
            "`model`: Problem with given class_path 'conftest.nothere.Module': "
            "module 'conftest' has no attribute 'nothere'",
        ),
    ],
)
def test_a_path_that_leads_elsewhere_is_told_with_the_remedy(refuse, config, arguments, message):
    if arguments[0] == "--config":
        lines = config.read_text().splitlines()
        config.write_text("\n".join(line for line in lines if "TinyModule" not in line))
        config.write_text(config.read_text().replace("model:", "model: {init_args: {width: 3}}"))
        arguments = []
    assert refuse("fit", *arguments).startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import sklearn",
            "sklearn halted; None in sys.modules. Is a package missing? `pip install scikit-",
        ),
        ("import nothere", "No module named 'nothere'. Is a package missing? `pip install nothe"),
        ("x = 1\ny = x / 0", "ZeroDivisionError: division by zero ({file}, line 2)"),
        ("x = 1\ny = (", "'(' was never closed ({file}, line 2)"),
    ],
    ids=["a package of another name", "a package", "an error", "no Python"],
)
def test_a_file_that_cant_be_imported_is_told_with_the_remedy_or_its_line(
    refuse, tmp_path, monkeypatch, code, message
):
    file = tmp_path / f"own_{len(code)}.py"
    file.write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    told = refuse("fit", "--model", f"{file.stem}.Model")
    assert told.startswith("error: `model`: ")
    assert message.format(file=file) in told


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_command_alone_says_what_to_give(refuse, command):
    message = refuse(command, config=None)
    assert "`--config FILE`" in message
    assert "`--ckpt_path FOLDER`" in message


@pytest.mark.parametrize("option", ["--config", "--ckpt_path", "--tag"])
def test_an_option_without_its_value_is_named(refuse, option):
    assert option in refuse("fit", option)


@pytest.mark.parametrize("tag", ["a/b", "a b", "", ".a", "x" * 300])
def test_a_tag_that_is_no_part_of_a_name_is_refused_with_the_rule(refuse, tag):
    assert f"`tag` is {tag!r}: use 1 to 100 letters, digits" in refuse("fit", f"--tag={tag}")


def test_class_options_are_those_of_all_bases_and_none_for_what_is_not_there():
    assert set(class_options(f"{__name__}.KeywordsOnly")) == {
        *("depth", "learning_rate", "schedule", "vis_iterations", "score_name", "score_mode"),
        *("channels_last", "compile", "fused"),
    }
    assert class_options("nowhere.Model") == class_options("conftest.Nope") == []


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_the_help_of_a_command_shows_how_its_classes_are_asked(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert f"{command} --model.help projects.digits.DigitsModule" in out
    assert "--ckpt_path" in out


def test_the_help_of_a_class_lists_the_arguments_of_all_bases(run):
    code, out, err = run("fit", "--model.help", f"{__name__}.KeywordsOnly")
    assert (code, err) == (0, "")
    assert "--model.depth" in out
    assert "--model.vis_iterations" in out
    assert BaseModule.__doc__.split("vis_iterations: ")[1].split(";")[0] in " ".join(out.split())


def test_the_help_shows_the_three_commands_one_starts_with(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    lines = [line.strip() for line in out.splitlines()]
    for command in ("fit --config configs/digits.yaml", "fit --ckpt_path experiments/session_...",
                    "test --ckpt_path experiments/session_..."):  # fmt: skip
        assert any(line.startswith(f"{command} ") for line in lines), command
    assert "validate and predict" in out


def test_a_config_may_be_yaml_itself(run, config):
    code, out, _ = run(
        "fit", "--config", config, "--config", "tag: of_words.yaml", "--print_config"
    )
    assert (code, yaml.safe_load(out)["tag"]) == (0, "of_words.yaml")


# Classes that take no argument ------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    "text",
    [
        "model: {class_path: MODEL}\ndata: {class_path: DATA}",
        "model: {class_path: MODEL, init_args: {}}\ndata: {class_path: DATA, init_args: {}}",
        "model: MODEL\ndata: DATA",
        "model: {class_path: MODEL, dict_kwargs: null}\ndata: {class_path: DATA, dict_kwargs: {}}",
    ],
    ids=["class_path", "empty init_args", "a name", "empty dict_kwargs"],
)
def test_classes_that_take_no_argument_train_from_a_file(run, config, sessions, tmp_path, text):
    path = tmp_path / "more.yaml"
    text = text.replace("MODEL", f"{__name__}.TakesNothing")
    path.write_text(text.replace("DATA", f"{__name__}.DataTakesNothing"))
    code, _, err = run("fit", "--config", config, "--config", path, "--trainer.max_steps=2")
    assert (code, err) == (0, "")
    [session] = sessions()
    assert (session / "checkpoints/last.ckpt").exists()
    code, _, err = run("fit", "--ckpt_path", session, "--trainer.max_steps=3")
    assert (code, err) == (0, "")


@pytest.mark.parametrize("data", ["DataTakesNothing", "DataTakesKeywords"])
def test_classes_that_take_no_argument_train_from_the_command_line(run, tmp_path, sessions, data):
    code, _, err = run(
        *("fit", "--model", f"{__name__}.TakesNothing", "--data", f"{__name__}.{data}"),
        *("--output_path", tmp_path / "experiments", "--trainer.accelerator=cpu"),
        *("--trainer.max_steps", "2"),
    )
    assert (code, err) == (0, "")
    assert len(sessions()) == 1


@pytest.mark.parametrize("group", ["model", "data"])
@pytest.mark.parametrize("value", ["", "[1]"])
def test_arguments_that_are_no_group_are_refused(refuse, tmp_path, group, value):
    (tmp_path / "more.yaml").write_text(f"{group}:\n  init_args: {value}")
    message = refuse("fit", "--config", "more.yaml")
    assert f"`{group}`" in message
    assert "`init_args` must be a group of settings, or be left out" in message


def test_a_package_of_the_current_folder_that_an_installed_one_hides_is_named(
    refuse, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json").mkdir()
    (tmp_path / "json/__init__.py").write_text("class Model: ...")
    told = f"json, not {tmp_path}/json: uninstall the one, or rename the other"
    assert told in refuse("fit", "--model", "json.Model")
    assert told in refuse("fit", "--model", "json.mine.Model")


def test_a_checkout_that_another_installed_one_hides_is_named(run, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lightning_trainer").mkdir()
    (tmp_path / "lightning_trainer/__init__.py").touch()
    code, _, err = run("fit", "--config", config, "--trainer.max_steps", "1")
    assert code == 0
    assert f"warning: `lightning_trainer` is {ROOT}/lightning_trainer, not {tmp_path}/" in err


def test_a_class_of_a_notebook_is_refused_with_what_to_do(run, half):
    config = half / "config.yaml"
    before = config.read_text()
    config.write_text(before.replace("tiny.Echo", "__main__.Gone"))
    code, _, err = run("test", "--ckpt_path", half)
    assert code == 2 and "has defined `Gone`" in err and "name that in config.yaml" in err
    config.write_text(before)
    assert run("validate", "--ckpt_path", half)[0] == 0
