"""Settings are read, written, compared and named alike everywhere."""

import pytest
import yaml

from lightning_trainer.session.settings import (
    differences,
    dump_settings,
    flatten,
    read_settings,
    read_yaml,
)


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({}, {}, []),
        ({"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}, []),
        ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 3, "d": 2}}}, ["a.b.c: 1 -> 3"]),
        ({"a": 1}, {"b": 2}, ["a: 1 -> None", "b: None -> 2"]),
        ({"a": {"b": 1}}, {"a": None}, ["a: {'b': 1} -> None"]),
        ({"a": [1]}, {"a": [2]}, ["a: [1] -> [2]"]),
    ],
)
def test_differences_name_each_key_at_any_depth(old, new, lines):
    assert differences(old, new) == lines


def test_settings_have_the_names_of_their_options():
    settings = {
        "tag": "a",
        "model": {"class_path": "A", "init_args": {"width": 3, "sub": {"b": 1}}},
    }
    assert flatten(settings) == {
        "tag": "a",
        "model.class_path": "A",
        "model.width": 3,
        "model.sub.b": 1,
    }


def test_text_that_looks_like_a_number_stays_text(tmp_path):
    settings = {"a": "3e-3", "b": "1e5", "c": 3e-3, "d": None, "e": "x", "f": [1, "2E4"]}
    path = tmp_path / "a.yaml"
    path.write_text(dump_settings(settings))
    assert read_yaml(path) == settings
    assert """'3e-3'""" in path.read_text()
    assert yaml.safe_load(path.read_text()) == settings


def test_a_name_that_is_not_utf8_is_written_and_read():
    settings = {"root": "data/\udcff", "caf\u00e9": [1.5, {"x": None}]}
    assert read_settings(dump_settings(settings)) == settings


@pytest.mark.parametrize(
    "text",
    [None, "", "[1, 2]", "a: [", "a: 2024-13-45", "\0", "a: !!python/name:os.system", "{[]: 1}"],
)
def test_what_is_no_mapping_is_none(tmp_path, text):
    path = tmp_path / "a.yaml"
    if text is not None:
        path.write_text(text)
    assert read_yaml(path) is None
