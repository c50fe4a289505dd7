"""What a release tells of itself, and what a code host reads."""

import re

import pytest
import yaml
from conftest import ROOT

import lightning_trainer

FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def test_the_version_stands_in_one_place():
    settings = (ROOT / "pyproject.toml").read_text()
    assert 'attr = "lightning_trainer.__version__"' in settings
    assert re.fullmatch(r"\d+\.\d+\.\d+", lightning_trainer.__version__)
    library = [path.read_text() for path in (ROOT / "lightning_trainer").rglob("*.py")]
    assert sum(f'"{lightning_trainer.__version__}"' in text for text in library) == 1


def test_the_citation_has_what_its_format_requires():
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= {*told}
    settings = (ROOT / "pyproject.toml").read_text()
    assert f'name = "{told["authors"][0]["name"]}"' in settings
    assert f'license = "{told["license"]}"' in settings


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_for_issues_is_one(path):
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= {*form}
    names = [part["id"] for part in form["body"]]
    assert len({*names}) == len(names)
    assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in form["body"])
