"""A real run with secrets in every place: no byte of its session folder shows one."""

import base64
import io
import json
import os
import shlex
import subprocess
import sys
import urllib.parse
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from secret_cases import HEX, made

from lightning_trainer.session.secrets import NOT_STORED

PROJECT = """
import os, subprocess, sys, warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from conftest import TinyData, TinyModule


class Data(TinyData):
    def __init__(
        self, password: str, pin_password: int = 0, db_pass: str = "", accessToken: str = "",
        passwords: list[str] | None = None, headers: dict[str, Any] | None = None, dsn: str = "",
        secrets: dict[str, Any] | None = None, github_token: str = "", token: str = "",
        wandb_key: str = "", folder: str = "", note: str = "",
        passphrase: str = "", **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        renamed = {"again": password, "raw": password.encode(), "path": Path(folder)}
        self.hparams["renamed"] = renamed
        self.given = [password, pin_password, db_pass, accessToken, passwords, headers, dsn]
        self.given += [secrets, github_token, token, wandb_key, folder, note, passphrase]

    def create_data(self) -> None:
        super().create_data()
        for value in [*self.given, *map(os.environ.get, ("PGPASSWORD", "DB_PASS", "HF_TOKEN"))]:
            print("connecting with", value)
            print(repr({"a": value}), file=sys.stderr)
            warnings.warn(f"no luck with {value!r}")
            subprocess.run(["echo", f"a child says {value}"])
        print("logging in: password=UNKNOWN_1 then 'token': 'UNKNOWN_2'")
        print(open(Path(__file__).parent / "key").read())


class Module(TinyModule):
    def __init__(self, api_key: str = "", fails: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.api_key, self.fails = api_key, fails
        self.hparams["key_of_mine"] = api_key

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log(f"loss_{self.api_key}", 1.0)
        if self.trainer.global_step == 2 and self.trainer.is_global_zero:
            for logger in self.trainer.loggers:
                if hasattr(logger, "experiment"):
                    logger.experiment.add_text("a note", f"with {self.api_key}")
        if self.fails:
            raise RuntimeError(f"the server refuses {self.api_key}, https://me:UNKNOWN_3@x.org/?sig=UNKNOWN_4")
        return loss
"""

PASSWORD = "correct horse 'battery' \"staple\" ä\\9"
TYPED = {
    "data.password": PASSWORD,
    "data.pin_password": "81726354",
    "data.db_pass": "Tr0ub4dor&3",
    "data.accessToken": made(30),
    "data.passwords": json.dumps([made(11), made(12)]),
    "data.headers": json.dumps({"Authorization": "Bearer " + made(31), "Accept": "json"}),
    "data.dsn": f"postgresql://trainer:{made(13)}@db.example.org:5432/runs",
    "data.secrets": json.dumps({"first": made(14), "second": {"third": made(15)}}),
    "data.github_token": "ghp_" + made(36),
    "data.note": f"see {PASSWORD} there",
    "data.folder": f"/a/{made(13)}/b",
    "model.api_key": made(32),
}
IN_FILE = {
    "token": "tok_" + made(16),
    "wandb_key": made(40, HEX),
    "passphrase": "a longer text of several words, which YAML wraps over lines as it is so long",
}
VARIABLES = {"PGPASSWORD": made(17), "DB_PASS": made(18), "HF_TOKEN": "hf_" + made(34)}
UNKNOWN = {f"UNKNOWN_{n}": made(20 + n) for n in range(1, 5)}
UNTRACKED = {
    name: made(40 + n)
    for n, name in enumerate(
        ["id_ed25519", ".envrc", ".git-credentials", ".pgpass", ".npmrc", "kaggle.json", "a.p12"]
    )
}
KEY = [made(64, seed=seed) for seed in "abc"]


def secrets() -> list[str]:
    """Each for itself, as it would be seen in a file."""
    texts = [PASSWORD, "81726354", "Tr0ub4dor&3", *KEY, *IN_FILE.values(), *VARIABLES.values()]
    texts += [*UNKNOWN.values(), *UNTRACKED.values(), TYPED["data.github_token"]]
    texts += [made(n) for n in (11, 12, 13, 14, 15, 30, 31, 32)]
    return texts


def forms(text: str) -> set[bytes]:
    quoted = {text, json.dumps(text)[1:-1], repr(text)[1:-1], urllib.parse.quote(text, safe="")}
    quoted |= {shlex.quote(text).strip("'"), base64.b64encode(text.encode()).decode().rstrip("=")}
    quoted |= {line for line in text.split("\n") if len(line) > 8}
    return {form.encode() for form in quoted}


def contents(path: Path) -> list[bytes]:
    """A file, and the files in it where it is a zip."""
    content = path.read_bytes()
    if not zipfile.is_zipfile(path):
        return [content]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [content, *map(archive.read, archive.namelist())]


def found(folder: Path) -> set[tuple[str, str]]:
    """Files with a secret, and the secret."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 8
    return {
        (path.name, text)
        for path in files
        for content in contents(path)
        for text in secrets()
        if any(form in content or form in b" ".join(content.split()) for form in forms(text))
    }


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A repository with uncommitted changes and untracked files that hold secrets."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "cli.py").write_text((ROOT / "cli.py").read_text())
    git = ["git", "-C", code, "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    project = PROJECT
    for name, value in UNKNOWN.items():
        project = project.replace(name, value)
    (code / "vault.py").write_text(project)
    (code / "key").write_text(
        "\n".join(["-----BEGIN RSA PRIVATE KEY-----", *KEY, "-----END RSA PRIVATE KEY-----"])
    )
    for name, value in UNTRACKED.items():
        (code / name).write_text(f"login {value}\n")
    settings = {
        "output_path": str(tmp_path / "experiments"),
        "trainer": {
            "max_steps": 4,
            "val_check_interval": 2,
            "log_every_n_steps": 1,
            "accelerator": "cpu",
        },
        "model": {"class_path": "vault.Module"},
        "data": {"class_path": "vault.Data", "init_args": IN_FILE},
    }
    (code / "mine.yaml").write_text(yaml.safe_dump(settings))
    return code


def fit(code: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(code), str(ROOT), os.environ["PYTHONPATH"]])
    return subprocess.run(
        [sys.executable, "cli.py", "fit", *arguments],
        cwd=code,
        env={**os.environ, **VARIABLES, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.slow
def test_no_byte_of_a_session_folder_shows_a_secret(code, tmp_path):
    assert len(secrets()) >= 25
    typed = [f"--{name}={value}" for name, value in TYPED.items()]
    first = fit(code, "--config", "mine.yaml", *typed)
    assert first.returncode == 0, first.stderr
    [session] = (tmp_path / "experiments").iterdir()
    assert found(session) == set()
    again = [*typed, *(f"--data.{name}={value}" for name, value in IN_FILE.items())]
    again += ["--trainer.max_steps=6", "--model.fails=true"]
    second = fit(code, "--ckpt_path", str(session), *again)
    assert second.returncode == 1
    assert found(session) == set()
    reason = json.loads((session / "run.json").read_text())["reason"]
    assert reason == "RuntimeError: the server refuses ***, https://me:***@x.org/?sig=***"
    # What was hidden is there, with stars in its place.
    settings = yaml.safe_load((session / "config.yaml").read_text())
    given = settings["data"]["init_args"]
    assert given["password"] == given["pin_password"] == given["token"] == NOT_STORED
    assert given["headers"] == {"Authorization": NOT_STORED, "Accept": "json"}
    assert settings["model"]["init_args"]["learning_rate"] == 0.01
    parameters = torch.load(session / "checkpoints/last.ckpt")["datamodule_hyper_parameters"]
    assert parameters["renamed"] == dict.fromkeys(("again", "raw", "path"), NOT_STORED)
    assert "connecting with ***\n" in (session / "log.txt").read_text()
    assert "loss_***" in (session / "metrics.csv").read_text()
    patch = (session / "uncommitted.patch").read_text()
    assert "+class Data(TinyData):\n" in patch
    assert "+-----BEGIN RSA PRIVATE KEY-----\n+***\n" in patch
