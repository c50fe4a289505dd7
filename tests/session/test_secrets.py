"""Passwords, keys and tokens stay out of the session folder."""

import argparse
import collections
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TinyData
from secret_cases import HARMLESS, PLACES, SECRETS, hides, leaks

from lightning_trainer.session import hiding
from lightning_trainer.session.checkpoint_header import layer_state
from lightning_trainer.session.hiding import read_rules
from lightning_trainer.session.secrets import (
    NOT_STORED,
    check_complete,
    hide,
    hide_in_command,
    scrub,
    secret_texts,
)

TOKEN = "hf_Zq8vR2mXw0Lk"
PASSWORD = "correct-horse-battery"
KEY = "AKIA5Q2W7E9R1T3Y"
MINE = (TOKEN, PASSWORD, KEY, "81726354")


class Guarded(TinyData):
    """Data that are behind a password."""

    def __init__(
        self, password: str, url: str, api_key: str = "", pin_password: int = 0, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        assert (password, api_key) == (PASSWORD, KEY)
        assert url == f"https://me:{TOKEN}@example.org/data"


# What is a secret -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("password", "db_password", "passwd", "secret", "client_secret", "credentials"),
        *("api_key", "apikey", "wandb_api_key", "access_key", "secret_key", "private_key"),
        *("api_token", "auth_token", "access_token", "hf_token", "API_KEY", "api-key"),
    ],
)
def test_a_name_can_say_that_it_is_a_secret(name):
    settings = {"model": {"init_args": {name: "x", "width": 3}}}
    assert scrub(settings) == {"model": {"init_args": {name: NOT_STORED, "width": 3}}}


@pytest.mark.parametrize(
    "name",
    [
        *("key", "pad_token", "n_tokens", "tokenizer", "max_token", "keys", "sort_key"),
        *("password_length", "secrets_path", "secretary", "api_key_name", "monkey", "n_secrets"),
    ],
)
def test_other_names_do_not(name):
    assert scrub({"model": {name: "x" * 20}}) == {"model": {name: "x" * 20}}


@pytest.mark.parametrize("value", [None, "", True, False, [], {}])
def test_what_can_hold_nothing_is_no_secret(value):
    assert scrub({"password": value}) == {"password": value}


def test_all_that_is_in_a_group_of_secrets_is_one():
    settings = {"credentials": {"user": "me", "ports": (1, "two"), "more": ["a", {"b": "c"}]}}
    hidden = {
        "user": NOT_STORED,
        "ports": (1, NOT_STORED),
        "more": [NOT_STORED, {"b": NOT_STORED}],
    }
    assert scrub(settings) == {"credentials": hidden}
    assert settings["credentials"]["user"] == "me"


@pytest.mark.parametrize(
    "variable", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "pg_password", "APIKEY"]
)
def test_what_an_environment_variable_keeps_secret_is_one_under_any_name(monkeypatch, variable):
    monkeypatch.setenv(variable, TOKEN)
    settings = {"url": f"https://me:{TOKEN}@example.org", "tag": TOKEN, "other": TOKEN[:-1]}
    assert scrub(settings) == {"url": NOT_STORED, "tag": NOT_STORED, "other": TOKEN[:-1]}
    assert hide(f"a {TOKEN} b", secret_texts({})) == "a *** b"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *[("TOKENIZERS_PARALLELISM", "a-long-value"), ("KEYBOARD", "a-long-value")],
        *[("HF_TOKEN", "seven"), ("HF_TOKEN", ""), ("SSH_KEY", __file__)],
    ],
    ids=["TOKENIZERS", "KEYBOARD", "short", "empty", "path of a file"],
)
def test_other_variables_hide_nothing(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    assert scrub({"a": f"x {value}"}) == {"a": f"x {value}"}


def test_a_key_of_several_lines_is_hidden_in_a_patch(monkeypatch):
    monkeypatch.setenv("DEPLOY_KEY", f"-----BEGIN KEY-----\n{KEY}\n")
    assert KEY not in hide(f"+++ b/key\n+-----BEGIN KEY-----\n+{KEY}\n", secret_texts({}))


# In every place -------------------------------------------------------------------------------

# A text of several words that a print shows without quotes is only known as a setting's value.
SEEN = {("a print `name=value`", "passphrase"), ("a print `name=value`", "private_key")}


@pytest.mark.parametrize("place", PLACES)
def test_every_place_hides_all_secrets(place):
    assert len(SECRETS) >= 60
    assert {(place, name) for name in SECRETS if leaks(place, name)} <= SEEN


@pytest.mark.parametrize("place", PLACES)
def test_every_place_shows_what_only_looks_like_a_secret(place):
    assert len(HARMLESS) >= 60
    assert [name for name in HARMLESS if hides(place, name)] == []


@dataclasses.dataclass(frozen=True)
class Login:
    password: str
    port: int = 5432


Account = collections.namedtuple("Account", ["api_key", "user"])


@pytest.mark.parametrize(
    ("value", "hidden"),
    [
        ({"password": 12345678}, {"password": NOT_STORED}),
        ({"password": 12.345}, {"password": NOT_STORED}),
        ({"labels": {"password": 0, "token": 1}}, {"labels": {"password": 0, "token": 1}}),
        ({"raw": TOKEN.encode()}, {"raw": NOT_STORED}),
        ({"path": Path("/a", TOKEN, "b")}, {"path": NOT_STORED}),
        ({"text": np.str_(f"a {TOKEN}")}, {"text": NOT_STORED}),
        ({"api_keys": ["a", "b"]}, {"api_keys": [NOT_STORED, NOT_STORED]}),
        (
            {"secrets": {"db": {"name": "x", "port": 5432}}},
            {"secrets": {"db": dict.fromkeys(("name", "port"), NOT_STORED)}},
        ),
        ({"login": Login("abc")}, {"login": Login(NOT_STORED)}),
        (
            {"a": argparse.Namespace(hf_token="x", b=1)},
            {"a": argparse.Namespace(hf_token=NOT_STORED, b=1)},
        ),
        ({"a": Account("x", "me")}, {"a": Account(NOT_STORED, "me")}),
        ({"a": {TOKEN: 1}}, {"a": {"***": 1}}),
        ({"a": (1, {TOKEN})}, {"a": (1, {NOT_STORED})}),
    ],
)
def test_a_secret_of_any_kind_in_any_group_is_not_stored(value, hidden):
    assert scrub(value, [TOKEN]) == hidden


def test_what_holds_no_secret_stays_the_same_object():
    settings = {
        "size": torch.Size([1, 2]),
        "weights": torch.ones(2),
        "names": ["a"],
        "login": [Login("")],
    }
    copied = scrub(settings)
    assert all(copied[name] is settings[name] for name in settings)


def test_a_secret_over_several_lines_is_hidden_and_no_line_is_lost():
    known = secret_texts({"passphrase": "correct horse battery staple"})
    assert hide("a correct horse\n  battery staple b", known) == "a ***\n *** b"


def test_a_short_secret_is_no_part_of_a_longer_word_or_number():
    known = secret_texts({"password": "pw-1", "passcode": 81726354})
    assert hide("pw-1 pw-12 0.81726354 81726354", known) == "*** pw-12 0.81726354 ***"


@pytest.mark.parametrize("text", ["", "***", NOT_STORED, "${DB_PASSWORD}", "{{ password }}", "str"])
def test_what_stands_for_a_secret_is_shown_in_a_text(text):
    assert (
        hide(f"password={text}\npassword: '{text}'", []) == f"password={text}\npassword: '{text}'"
    )


def test_code_shows_variables_and_types_and_hides_what_is_written_there():
    code = (
        "def log_in(password: str, token=None):\n    db.log_in(password=password2, key=self.key)\n"
    )
    assert hide(code, [], kind="code") == code
    assert hide("password = 'hunter2'", [], kind="code") == "password = '***'"


def test_every_rule_can_be_read_and_finds_its_kind():
    _, rules = read_rules()
    assert len({pattern for found in rules.values() for pattern, _ in found}) > 100
    for word, found in rules.items():
        assert all(re.compile(pattern) for pattern, _ in found), word
    text = (Path(hiding.__file__).parent / "secret_rules.txt").read_text()
    assert "gitleaks v8" in text and "Permission is hereby granted" in text


# The command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "hidden"),
    [
        ("--data.password abc --tag x", "--data.password *** --tag x"),
        ("--data.password=abc --tag=x", "--data.password=*** --tag=x"),
        ("--model.init_args.api_key a=b c", "--model.init_args.api_key *** c"),
        ("--model.pad_token abc --key d", "--model.pad_token abc --key d"),
        ("--model.secret --tag x", "--model.secret --tag x"),
        (f"--url=https://me:{TOKEN}@x.org", "--url=https://me:***@x.org"),
        (
            f"--data {{'init_args':{{'hf_token':'{KEY}'}}}}",
            "--data {'init_args':{'hf_token':'***'}}",
        ),
    ],
)
def test_the_command_shows_stars_in_place_of_a_secret(monkeypatch, command, hidden):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    secrets = secret_texts({"data": {"init_args": {"hf_token": KEY}}})
    assert " ".join(hide_in_command(command.split(" "), secrets)) == hidden


def test_a_secret_within_another_leaves_nothing_of_it():
    secrets = secret_texts({"password": "12345678", "a": {"secret": "1234567890"}})
    assert hide("1234567890 12345678", secrets) == "*** ***"


# What has to be given again -------------------------------------------------------------------


def test_what_was_not_stored_is_named_with_its_option():
    check_complete({"model": {"init_args": {"a": "b"}}})
    with pytest.raises(ValueError) as caught:
        check_complete({"model": {"init_args": {"api_key": NOT_STORED}}, "tag": NOT_STORED})
    assert str(caught.value) == (
        "`model.api_key` is '<secret: not stored>': give it again by `--model.api_key VALUE`; "
        "`tag` is '<secret: not stored>': give it again by `--tag VALUE`"
    )


# A run ----------------------------------------------------------------------------------------


@pytest.fixture
def code(tmp_path: Path, monkeypatch) -> Path:
    """A repository whose uncommitted changes hold all secrets."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "cli.py").write_text("token = 1\n")
    (code / ".env").write_text("A=1\n")
    git = ["git", "-C", code, "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    (code / "cli.py").write_text(f"token = {TOKEN!r}\n")
    (code / "mine.yaml").write_text(
        f"data:\n  class_path: {__name__}.Guarded\n  init_args:\n    api_key: {KEY}\n"
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return code


OPTIONS = [
    "--data.pin_password",
    "81726354",
    "--data.password",
    PASSWORD,
    f"--data.url=https://me:{TOKEN}@example.org/data",
]


def holders(folder: Path) -> set[str]:
    """The files that hold a secret."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 6
    return {p.name for p in files if any(secret.encode() in p.read_bytes() for secret in MINE)}


@pytest.fixture
def fit(run, config, code, sessions, monkeypatch):
    """Runs a session that needs all secrets, with its command line as that of the process."""
    arguments = ["fit", "--config", config, "--config", code / "mine.yaml", *OPTIONS]
    arguments += ["--trainer.max_steps", "6"]
    monkeypatch.setattr(sys, "argv", [str(code / "cli.py"), *map(str, arguments)])
    code, _, err = run(*arguments)
    assert code == 0, err
    [session] = sessions()
    return session


def test_no_file_of_a_session_holds_a_secret(fit):
    assert holders(fit) == set()
    settings = yaml.safe_load((fit / "config.yaml").read_text())
    checkpoint = torch.load(fit / "checkpoints/last.ckpt")
    assert layer_state(checkpoint)["settings"] == settings
    data = settings["data"]["init_args"]
    assert data["password"] == data["api_key"] == data["url"] == NOT_STORED
    command = yaml.safe_load((fit / "environment.yaml").read_text())["command"]
    assert "--data.pin_password '***' --data.password '***' '--data.url=https://me:***" in command
    patch = (fit / "uncommitted.patch").read_text()
    assert "+token = '***'\n" in patch
    assert "+    api_key: ***\n" in patch


@pytest.mark.parametrize("option", ["--ckpt_path", "--config"])
def test_a_session_asks_for_its_secrets_again_and_goes_on_with_them(fit, run, sessions, option):
    path = fit if option == "--ckpt_path" else fit / "config.yaml"
    before = (fit / "log.txt").read_bytes()
    code, out, err = run("fit", option, path, "--trainer.max_steps", "7", *OPTIONS)
    assert (code, out) == (2, "")
    assert err.startswith(
        f"error: `data.api_key` is '{NOT_STORED}': give it again by `--data.api_key VALUE`\n"
    )
    assert (fit / "log.txt").read_bytes() == before
    assert sessions() == [fit]
    code, out, err = run(
        "fit", option, path, "--trainer.max_steps", "7", *OPTIONS, "--data.api_key", KEY
    )
    assert code == 0, err
    assert NOT_STORED not in out
    assert {name for session in sessions() for name in holders(session)} == set()


def test_a_folders_name_may_not_have_a_secret(run, config, monkeypatch, sessions):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, _, err = run("fit", "--config", config, "--tag", f"with_{TOKEN}")
    assert code == 2
    assert err.startswith("error: `tag` has a secret in it")
    assert TOKEN not in err
    assert sessions() == []


def test_a_secret_in_a_config_from_elsewhere_is_not_shown(fit, run):
    file = fit / "config.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["data"]["init_args"].update(password=PASSWORD, api_key=KEY)
    file.write_text(yaml.safe_dump(settings))
    code, out, err = run(
        "fit", "--ckpt_path", fit, "--trainer.max_steps", "7", *OPTIONS[:2], OPTIONS[4]
    )
    assert code == 0, err
    assert "trainer.max_steps: 6 -> 7\n" in out
    assert not any(secret in out for secret in MINE)
    assert holders(fit) == set()
