"""Settings that are secrets, settings that only look like some, and the places that show them.

The values are made here, so that no scanner of this repository takes them for real ones.
"""

import base64
import hashlib
import json
import os
import shlex
import string
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_trainer.session.secrets import (
    NOT_STORED,
    hide,
    hide_in_command,
    scrub,
    secret_texts,
)
from lightning_trainer.session.settings import dump_settings


def made(n: int, letters: str = string.ascii_letters + string.digits, seed: str = "") -> str:
    """A text of n letters that looks random and is always the same."""
    digest = hashlib.shake_256(f"{n}{letters}{seed}".encode()).digest(n)
    return "".join(letters[byte % len(letters)] for byte in digest)


HEX = string.hexdigits[:16]
LETTERS = string.ascii_letters

# Under these names any text or number is a secret.
NAMED = {
    "password": "hunter2",
    "passwd": "correct horse battery staple",
    "pwd": made(9),
    "db_pass": "s3cr3t-db",
    "smtp_pass": "mailme77",
    "passphrase": "long, and \"quoted\" and 'quoted'",
    "passcode": 81726354,
    "root_pw": "toor-toor",
    "user_password": 918273645,
    "dbPassword": "Tr0ub4dor&3",
    "PGPASSWORD": "post/gres:pw@1",
    "password2": "zweites%Wort9",
    "secret": "öffentlich-nicht-5",
    "client_secret": made(24),
    "clientSecret": made(25),
    "app_secret": made(20, HEX),
    "credentials": "me:letmein-now",
    "creds": "me/letmein2now",
    "api_key": "abc123xyz",
    "apikey": made(16),
    "apiKey": made(17),
    "x-api-key": made(18),
    "wandb_api_key": made(40, HEX),
    "access_key": made(20),
    "aws_secret_access_key": made(40, LETTERS + string.digits + "+/"),
    "secret_key": "\\back\\slash\\9",
    "private_key": "MIIE\nvQIBADANBgkqh\nkiG9w0BAQEFAASC",
    "encryption_key": made(32),
    "storage_account_key": made(44) + "==",
    "authorization": "Bearer " + made(30),
    "Authorization": "Basic " + base64.b64encode(b"me:pass-word1").decode(),
    "bearer": made(22),
    "cookie": "session=" + made(26),
    "api_token": "tok-short1",
    "access_token": made(30),
    "accessToken": made(31),
    "refresh_token": made(32),
    "hf_token": "hf_" + made(12),
    "github_token": made(33),
    "session_token": made(60),
    "license_key": "AAAA-1111-BBBB-2222",
}
# Under these names a text that may be a token.
TOKENS = {
    "token": "tok_" + made(10),
    "wandb_token": made(21),
    "slack_token": made(22),
    "mlflow_tracking_token": "abcdef-98765",
    "jwt": made(23),
    "auth": "me:my-passw0rd",
    "webhook": "https://hooks.example.org/T0/" + made(20),
    "deploy_key": made(40, HEX),
    "neptune_key": made(64),
}
# Under any name.
SHAPED = {
    "url": "https://me:" + made(10) + "@example.org/data.zip",
    "dsn": "postgresql://trainer:" + made(9) + "@db.example.org:5432/runs",
    "index": "https://" + made(28) + "@pypi.example.org/simple",
    "link": "https://example.org/a.tar?token=" + made(12) + "&part=3",
    "signed": "https://store.example.org/a?se=2026&sig=" + made(30) + "%3D",
    "connection": "Server=db;User=me;Password=" + made(10) + ";Timeout=30",
    "azure": "AccountName=a;AccountKey=" + made(60) + "==;Suffix=x",
    "header": "Authorization: Bearer " + made(30),
    "note": "log in with password=" + made(10),
    "as_json": '{"user": "me", "password": "' + made(10) + '"}',
    "github": "ghp_" + made(36),
    "huggingface": "hf_" + made(34, LETTERS),
    "openai": "sk-proj-" + made(40),
    "aws": "AKIA" + made(16, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"),
    "google": "AIza" + made(35),
    "gitlab": "glpat-" + made(20),
    "slack": "xoxb-" + "-".join(made(11, "123456789", seed) for seed in "ab") + "-" + made(24),
    "npm": "npm_" + made(36),
    "stripe": "sk_live_" + made(24),
    "web_token": ".".join("eyJ" + made(n) for n in (30, 60)) + "." + made(43),
    "pem": "-----BEGIN RSA PRIVATE KEY-----\n"
    + "\n".join(made(64, seed=seed) for seed in "ab")
    + "\n-----END RSA PRIVATE KEY-----\n",
}
SECRETS: dict[str, Any] = {**NAMED, **TOKENS, **SHAPED}

HARMLESS: dict[str, Any] = {
    "learning_rate": 3e-4,
    "key_dim": 64,
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "mask_token": "[MASK]",
    "eos_token_id": 50256,
    "pad_token_id": 0,
    "n_tokens": 1_000_000,
    "max_tokens": 4096,
    "max_new_tokens": 128,
    "token": 3,
    "tokens": ["the", "cat"],
    "special_tokens": {"pad": "<pad>", "begin": "<|begin_of_text|>"},
    "stop_token": "<|endoftext|>",
    "tokeniser": "bert-base-uncased",
    "tokenizer_name": "meta-llama/Llama-3.1-8B-Instruct",
    "tokenizers_parallelism": "false",
    "token_dropout": 0.1,
    "token_type": "subword",
    "tokens_per_second": 12345.6,
    "monitor_key": "val/accuracy",
    "monitor": "val/f1_macro_top5",
    "sort_key": "score",
    "image_key": "image_0_rgb",
    "keys": ["a", "b"],
    "key": "imagenet1k-resnet50",
    "keypoints": 17,
    "keyframe_interval": 8,
    "monkey_species": "rhesus",
    "keyboard_layout": "qwertz",
    "public_key_path": "/home/me/.ssh/id_rsa.pub",
    "credentials_file": "/home/me/.config/service.json",
    "credentials": "/home/me/key.json",
    "private": False,
    "use_auth": True,
    "auth_type": "oauth2",
    "author": "A. Author",
    "author_token_count": 12,
    "authority": "example.org",
    "secret_dim": 16,
    "secret_sharing": "shamir",
    "secretary_problem_n": 37,
    "n_secrets": 5,
    "password_length": 12,
    "password_field": "pw_1",
    "min_password_length": 8,
    "passes": 3,
    "forward_pass": "checkpointed",
    "low_pass": "butterworth4",
    "n_passes": 2,
    "bypass": "none",
    "compass": "north-west-12",
    "passenger_class": "first",
    "embassy": "paris2024",
    "git_commit": made(40, HEX),
    "data_sha256": made(64, HEX),
    "md5": made(32, HEX),
    "run_id": "550e8400-e29b-41d4-a716-446655440000",
    "experiment": "baseline_lr3e-4_bs256_wd0.05_seed12345",
    "class_path": "projects.secrets_of_cells.model.TokenClassifier",
    "url": "https://example.org:8080/datasets/a.zip?version=3&part=12",
    "repo": "git@example.org:me/project.git",
    "homepage": "https://example.org/@me",
    "path": "/scratch/me/experiments/session_node1_2026_11_26_20_01_02_run/checkpoints/last.ckpt",
    "devices": "0,1,2,3",
    "max_time": "00:12:00:00",
    "betas": [0.9, 0.999],
    "schedule": {"warmup": 500, "cooldown": 0.2},
    "description": "Wrong password: the error of a wrong password is shown",
    "prompt": "Key findings: tokens are counted by their keys",
    "regex": r"(?:train|val)/.*_loss$",
    "unicode": "größer als π",
    "picture": "data:image/png;base64," + made(400, LETTERS + string.digits + "+/"),
    "signature_def": "serving_default",
    "sigma": 0.5,
    "cookiecutter": "gh:me/template",
    "basic_block": "basic understanding12 of",
    "salt_and_pepper": 0.02,
    "hf_model": "hf_internal_testing_tiny_random_bert2",
    "sk_learn": "sk-learn-estimator-3",
}


def text_of(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def core(value: Any) -> str:
    """The part of a secret that must not be seen anywhere: made of one word in its middle."""
    words = text_of(value).replace("/", " ").replace("=", " ").replace(":", " ").split()
    return max(words, key=len)


def _known(name: str, value: Any) -> list[str]:
    return secret_texts({"data": {"init_args": {name: value}}})


def _one(name: str, value: Any) -> str:
    return dump_settings(scrub({"data": {"init_args": {name: value}}}))


def _elsewhere(name: str, value: Any) -> str:
    settings: dict[str, Any] = {"note": f"see {value} there", "b": [str(value)]}
    if "://" not in str(value):  # a path has no double slash
        settings["path"] = Path("/a", str(value))
    settings["raw"] = str(value).encode()
    return repr(scrub(settings, _known(name, value)))


def _command(name: str, value: Any) -> str:
    words = [f"--data.{name}", str(value), f"--data.init_args.{name}={value}", "--tag", "a"]
    return shlex.join(hide_in_command(words, _known(name, value)))


def _printed(form: Callable[[str], str]) -> Callable[[str, Any], str]:
    def place(name: str, value: Any) -> str:
        return hide(f"could not use {form(str(value))}!", _known(name, value))

    return place


def _unknown(form: str) -> Callable[[str, Any], str]:
    """A text of the project, with a value that no setting and no variable has."""
    return lambda name, value: hide(form.format(name=name, value=value, repr=repr(value)), [])


def _patch(form: str, file: str, kind: Any) -> Callable[[str, Any], str]:
    def place(name: str, value: Any) -> str:
        literal = form.format(name=name, value=value, repr=repr(value), json=json.dumps(value))
        lines = "".join(f"+{line}\n" for line in literal.split("\n"))
        return hide(f"diff --git a/{file} b/{file}\n{lines}", [], kind)

    return place


def _variable(name: str, value: Any) -> str:
    variable, before = name.replace("-", "_").upper(), dict(os.environ)
    os.environ[variable] = str(value)
    try:
        return hide(f"it is {value} there", secret_texts({})) + repr(scrub({"a": f"x {value}"}))
    finally:
        os.environ.clear()
        os.environ.update(before)


def _in_base64(text: str) -> str:
    return base64.b64encode(f"user:{text}".encode()).decode()


# What a place shows of a setting. In those of the first table the setting is one of the run's own.
KNOWN: dict[str, Callable[[str, Any], str]] = {
    "config.yaml, checkpoints, TensorBoard's table": _one,
    "another setting or hyper-parameter with the value": _elsewhere,
    "the command in environment.yaml": _command,
    "a print or error with the value": _printed(str),
    "the same, as JSON": _printed(json.dumps),
    "the same, as `repr`": _printed(repr),
    "the same, quoted for a URL": _printed(lambda text: urllib.parse.quote(text, safe="")),
    "the same, quoted for a shell": _printed(shlex.quote),
    "the same, within base64": _printed(_in_base64),
    "a variable of the environment, printed": _variable,
}
UNKNOWN: dict[str, Callable[[str, Any], str]] = {
    "a print `name=value`": _unknown("connecting with {name}={value}"),
    "a print of a dict": _unknown("{{'user': 'me', '{name}': {repr}}}"),
    "a line of YAML in uncommitted.patch": _patch("{name}: {json}", "mine.yaml", "settings"),
    "a line of Python in uncommitted.patch": _patch("{name} = {repr}", "mine.py", "code"),
}
PLACES = {**KNOWN, **UNKNOWN}


def leaks(place: str, name: str) -> bool:
    """Whether a place shows a secret, in whole or in the form that the place gives it."""
    value = SECRETS[name]
    shown, hidden = PLACES[place](name, value), core(value)
    forms = {hidden, json.dumps(hidden)[1:-1], repr(hidden)[1:-1]}
    forms |= {urllib.parse.quote(hidden, safe=""), _in_base64(hidden)[8:-6]}
    return any(form in shown for form in forms if len(form) > 3)


def hides(place: str, name: str) -> bool:
    """Whether a place hides a part of a harmless setting."""
    shown = PLACES[place](name, HARMLESS[name])
    return "***" in shown or NOT_STORED in shown
