"""A missing package is named with the command that installs it."""

import re

from conftest import ROOT

from lightning_trainer.session import extras
from lightning_trainer.session.extras import install_command


def test_a_checkout_is_installed_from_its_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert install_command("onnx") == '`pip install -e ".[onnx]"`'
    monkeypatch.chdir(tmp_path)
    assert install_command("onnx") == f'`pip install -e "{ROOT}[onnx]"`'


def test_a_wheel_is_installed_by_its_name(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "PACKAGE", tmp_path / "lightning_trainer")
    assert install_command("onnx") == '`pip install "lightning_trainer[onnx]"`'


def test_each_extra_that_is_named_exists():
    text = (ROOT / "pyproject.toml").read_text()
    block = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    known = re.findall(r"^(\w+) = ", block, re.MULTILINE)
    library = "".join(path.read_text() for path in (ROOT / "lightning_trainer").rglob("*.py"))
    named = re.findall(r"install_command\([\"'](\w+)", library)
    assert len(named) >= 5 and {*named} <= {*known}
    assert 'pip install "' not in library.replace('`pip install "lightning_trainer[', "")
