"""A config that `fit` takes is valid by its schema, and one with a misspelt key is not."""

import json
from pathlib import Path

import pytest
from conftest import ROOT

from lightning_trainer.commands.new import project_files
from lightning_trainer.session.settings import load_yaml
from lightning_trainer.start.schema_command import config_schema

jsonschema = pytest.importorskip("jsonschema")
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def faults(schema: dict, settings: dict) -> list[str]:
    found = jsonschema.Draft202012Validator(schema).iter_errors(settings)
    return [".".join(map(str, fault.path)) for fault in found]


@pytest.fixture(scope="module")
def digits() -> tuple[dict, dict]:
    """The schema of configs/digits.yaml, and its settings."""
    settings = load_yaml(ROOT / "configs/digits.yaml")
    return config_schema(settings), settings


@pytest.mark.slow
def test_the_schema_is_one(digits):
    jsonschema.Draft202012Validator.check_schema(digits[0])
    assert faults(*digits) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("", "tags", "a"),
        ("", "save_minutes", "often"),
        ("", "on_non_finite", "go"),
        ("trainer", "max_stepz", 3),
        ("trainer", "max_steps", "many"),
        ("model", "learning_rate", "high"),
        ("model", "learning_rat", 0.1),
        ("data", "batch_size", 1.5),
    ],
)
def test_a_wrong_key_or_value_is_none_of_the_schema(digits, group, key, value):
    schema, settings = json.loads(json.dumps(digits))
    place = settings[group] if group else settings
    place = place["init_args"] if group in ("model", "data") else place
    place[key] = value
    assert faults(schema, settings) == [
        f"{group}.{key}" if key == "max_steps" else group or ("" if key == "tags" else key)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "callbacks",
    [
        None,
        "lightning_trainer.ShowMistakes",
        ["lightning_trainer.ShowMistakes", {"class_path": "mine.Own", "init_args": {"a": 1}}],
        [{"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"duration": None}}],
    ],
)
def test_callbacks_may_be_those_of_others(digits, callbacks):
    schema, settings = digits
    trainer = {**settings["trainer"], "callbacks": callbacks, "callbacks+": callbacks}
    assert faults(schema, {**settings, "trainer": trainer}) == []


@pytest.mark.slow
def test_known_callbacks_are_checked(digits):
    schema, settings = digits
    timer = {"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"durations": None}}
    trainer = {**settings["trainer"], "callbacks": [timer]}
    assert faults(schema, {**settings, "trainer": trainer}) == ["trainer.callbacks"]


@pytest.mark.slow
def test_a_file_with_a_few_keys_is_valid_beside_another(digits):
    some = {"model": {"init_args": {"learning_rate": 0.1}}, "trainer": {"max_steps": 3}}
    assert faults(digits[0], some) == []


def test_it_lies_beside_the_config_whose_line_names_it(run, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_trainer.start.schema_command.config_schema", lambda s: {"a": s})
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("tag: b\n")
    line = "# yaml-language-server: $schema=a.schema.json\n"
    code, out, err = run("schema", "--config", "a.yaml")
    assert (code, err) == (0, "")
    add = f"For editors, add this line at the top of a.yaml:\n{line}"
    assert out == f"Schema: a.schema.json\n{add}"
    assert json.loads(Path("a.schema.json").read_text()) == {"a": {"tag": "b"}}
    Path("a.yaml").write_text(f"{line}tag: b\n")
    assert run("schema", "-c", "a.yaml") == (0, "Schema: a.schema.json\n", "")
    assert run("schema", "-c", "a.yaml", "--output", "-") == (0, '{"a": {"tag": "b"}}\n', "")


def test_what_new_makes_names_its_schema():
    text = project_files("mine", Path("mine"))[Path("configs/mine.yaml")]
    assert "# yaml-language-server: $schema=mine.schema.json\n" in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: nowhere.Model", "No module named 'nowhere'"),
        ("model: conftest.Nothing", "has no attribute 'Nothing'"),
        ("- 1", "holds no settings"),
    ],
)
def test_what_cant_be_described_is_one_message(run, tmp_path, text, told):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    code, out, err = run("schema", "--config", path)
    assert (code, out, len(err.splitlines())) == (2, "", 2)
    assert err.startswith(f"error: `--config` is {str(path)!r}: ") and told in err


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_config_is_valid(path):
    settings = load_yaml(path)
    assert faults(config_schema(settings), settings) == []
