"""Each sentence of docs/trust.md has a test."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TinyModule

from lightning_trainer.checkpoints.files import AtomicCheckpointIO

# Of each sentence its beginning, and where it is tested.
TESTED = {
    "You may look at": "",
    "This page says": "",
    "The program that": "session/test_imports.py::test_a_session_or_checkpoint_among",
    "Settings name": "session/test_imports.py::test_no_setting_of_a_session_imports_from_it",
    "They come from": "session/test_imports.py::test_no_setting_of_a_session_imports_from_it",
    "So a session's": "test_trust.py::test_the_settings_of_a_session_choose_among_what_is_there",
    "Read it before": "",
    "`lightning-trainer`": "session/test_imports.py::test_the_current_folder_comes_after_all",
    "A file there": "session/test_imports.py::test_the_current_folder_comes_after_all",
    "Where an installed": "session/test_imports.py::test_a_package_of_the_current_folder_that_is_h",
    "No setting may": "test_trust.py::test_no_setting_names_a_way_to_run_code",
    "`python -m": "test_trust.py::test_python_looks_into_the_working_folder_first",
    "Nothing in a": "test_internals_of_loading.py::test_a_number_with_code_is_not_executed",
    "So it is": "checkpoints/test_weights.py::test_nothing_in_weights_from_elsewhere_is_executed",
    "No module is": "session/test_imports.py::test_no_way_leads_into_a_session_folder",
    "A session folder": "session/test_imports.py::test_a_folder_is_a_session_by_its_name",
    "Then the folder": "session/test_imports.py::test_the_folder_that_is_read_counts",
    "A program that": "session/test_imports.py::test_a_program_that_lies_in_a_session",
    "A YAML makes": "session/test_door.py::test_a_yaml_of_any_cost_is_refused_at_once",
    "The settings of": "test_trust.py::test_settings_are_read_from_nowhere_else",
    "`--ckpt_path`": "test_trust.py::test_an_address_is_no_checkpoint",
    "On a page": "commands/test_report.py::test_nothing_that_a_session_holds_becomes_markup",
    "Lightning's": "test_trust.py::test_lightnings_own_way_is_not_guarded",
    "`sessions` and": "commands/test_hostile_sessions.py::test_a_bad_folder_is_a_row",
    "All other rows": "commands/test_hostile_sessions.py::test_a_bad_folder_is_a_row",
    "A pipe, a": "session/test_door.py::test_what_is_no_file_is_refused_at_once",
    "A file of": "session/test_door.py::test_a_yaml_of_any_cost_is_refused_at_once",
    "A table reads": "session/test_pickle_bounds.py::test_what_is_too_large_for_a_table",
    "A checkpoint in": "session/test_archive.py::test_a_flipped_bit_is_seen_wherever_it_is",
    "Each record has": "session/test_archive.py::test_a_flipped_bit_is_seen_wherever_it_is",
    "A sharded": "test_internals_of_loading.py::test_a_flipped_bit_in_a_shard_is_seen",
    "Checkpoints without": "session/test_archive.py::test_a_file_without_a_seal_is_read",
    "What a terminal": "commands/test_hostile_sessions.py::test_nothing_reaches_the_terminal",
    "A run writes": "session/test_door.py::test_no_link_of_a_session_folder_is_written",
    "If `.lock`": "session/test_door.py::test_no_link_of_a_session_folder_is_written",
    "`checkpoints` may": "session/test_door.py::test_checkpoints_may_lie_on_another_disk",
    "Any other link": "session/test_door.py::test_a_link_to_others_files_is_refused",
    "The session folder": "session/test_folder.py::test_a_folder_is_the_session_wherever",
    "All files have": "session/test_folder.py::test_all_files_have_the_permissions",
    "With `umask": "session/test_folder.py::test_all_files_have_the_permissions",
}


def sentences() -> list[str]:
    text = (ROOT / "docs/trust.md").read_text().partition("## What is hidden")[0]
    parts = re.split(r"\n\n|\n- |^- |^#.*$", text, flags=re.M)
    plain = [" ".join(part.split()).removeprefix("- ") for part in parts]
    return [s for part in plain for s in re.split(r"(?<=\.) (?=[A-Z`])", part) if s]


def test_each_sentence_has_a_test():
    said = sentences()
    assert len(said) >= len(TESTED)
    for sentence in said:
        [place] = {place for begin, place in TESTED.items() if sentence.startswith(begin)}
        if place:
            file, _, name = place.partition("::")
            code = ast.parse((ROOT / "tests" / file).read_text())
            names = [node.name for node in ast.walk(code) if isinstance(node, ast.FunctionDef)]
            assert any(n.startswith(name) for n in names), place
    assert all(any(s.startswith(begin) for s in said) for begin in TESTED)


def refused(run, *arguments: object) -> str:
    code, out, err = run(*arguments)
    [message] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, "Traceback" in out + err) == (2, False)
    return message


def replace_setting(session: Path, line: str) -> None:
    path, key = session / "config.yaml", line.partition(":")[0]
    text = path.read_text()
    path.write_text(re.sub(rf"^{key}:.*\n(?: .*\n)*", f"{line}\n", text, flags=re.M))


def test_the_settings_of_a_session_choose_among_what_is_there(run, half):
    replace_setting(half, "model: {class_path: tiny.WideModule}")
    code, _, err = run("test", "--ckpt_path", half)
    assert code == 1  # that class has been made: its tensors have other shapes
    assert "the checkpoint is of another model" in err


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "builtins.eval"])
def test_no_setting_names_a_way_to_run_code(run, half, config, name):
    callback = "lightning.pytorch.callbacks.LambdaCallback"
    settings = f"[{{class_path: {callback}, init_args: {{on_test_start: {name}}}}}]"
    replace_setting(half, f"trainer: {{callbacks: {settings}}}")
    assert name.rpartition(".")[2] in refused(run, "test", "--ckpt_path", half)
    refused(run, "fit", "--config", config, f"--model={name}")


def test_python_looks_into_the_working_folder_first(tmp_path):
    (tmp_path / "json.py").write_text("print('mine')")
    command = [sys.executable, "-m", "json"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    assert out.split() == [b"mine"]


@pytest.mark.parametrize("value", ["http://127.0.0.1:9/a.yaml", "memory://a.yaml", "/dev/zero"])
@pytest.mark.parametrize("key", ["model", "data"])
def test_settings_are_read_from_nowhere_else(run, half, monkeypatch, key, value):
    replace_setting(half, f"{key}: {value}")
    refused(run, "test", "--ckpt_path", half)


@pytest.mark.parametrize("path", ["http://127.0.0.1:9/a.ckpt", "s3://a/b.ckpt", "best", "hpc"])
def test_an_address_is_no_checkpoint(run, config, path):
    assert "there is no such session folder or checkpoint" in refused(
        run, "test", "--config", config, "--ckpt_path", path
    )


def test_lightnings_own_way_is_not_guarded(monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda url, **options: asked.append(options) or {}
    )
    for options in ({}, {"weights_only": True}):
        with pytest.raises(KeyError):
            TinyModule.load_from_checkpoint("http://127.0.0.1:9/a.ckpt", **options)
    assert [options["weights_only"] for options in asked] == [False, True]


class Executed:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("command", ["test", "fit", "validate", "predict"])
def test_a_checkpoint_with_code_is_not_loaded_whatever_weights_only_says(
    run, half, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    path = half / "checkpoints/last.ckpt"
    checkpoint = torch.load(path)
    torch.save({**checkpoint, "evil": Executed()}, path)
    refused(run, command, "--ckpt_path", path, "--weights_only=false")
    with pytest.raises(Exception, match="weights_only"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not Path("executed").exists()
