"""A session goes on in its folder, and a new one starts from its checkpoint."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from tiny import Breaks, contents, logged, names, same, settings, use_descriptors, weights


@pytest.mark.parametrize("form", ["absolute", "relative", "relative/", "file"])
def test_a_moved_folder_goes_on_in_place(run, half, whole, sessions, tmp_path, monkeypatch, form):
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    half.rename(moved)
    monkeypatch.chdir(tmp_path)
    paths = {"absolute": moved, "relative": "elsewhere/renamed", "relative/": "elsewhere/renamed/"}
    path = paths.get(form, moved / "checkpoints" / "last.ckpt")
    there = os.listdir(whole.parent)
    code, out, err = run("fit", "--ckpt_path", path, "--trainer.max_steps", "23")
    assert code == 0, err
    assert "Going on with " in out
    assert "elsewhere/renamed after iteration 11\n" in out
    assert "    trainer.max_steps: 11 -> 23\n" in out
    assert sessions() == []
    assert os.listdir(whole.parent) == there
    assert names(moved) - {"uncommitted.patch", "uncommitted_1.patch"} == {
        *("config.yaml", "config_1.yaml", "log.txt", "environment.yaml", "metrics.csv"),
        *("curves.png", "run.json", "packages.txt"),
        *("events.out", "checkpoints/best.ckpt", "checkpoints/last.ckpt"),
    }
    assert settings(moved)["trainer"]["max_steps"] == 23
    assert same(weights(moved), weights(whole))
    assert len(yaml.safe_load((moved / "environment.yaml").read_text())["restarts"]) == 1


def test_what_is_as_before_is_not_told(run, whole, sessions, config, monkeypatch):
    assert run("fit", "--config", config, "--model", "tiny.Breaks")[0] == 1
    [session] = sessions()
    monkeypatch.setattr(Breaks, "broken", False)
    code, out, err = run("fit", "--ckpt_path", session)
    assert code == 0, err
    assert out.startswith(f"Going on with {session} after iteration 10\nParameters: ")
    assert "config_1.yaml" not in names(session)
    assert same(weights(session), weights(whole))


def test_changed_settings_commit_and_versions_are_told(run, half):
    file = half / "environment.yaml"
    environment = yaml.safe_load(file.read_text())
    commit, torch_version = environment["git_commit"], environment["packages"]["torch"]
    environment["git_commit"], environment["packages"]["torch"] = "c0ffee", "1.0"
    file.write_text(yaml.safe_dump(environment))
    options = ["--trainer.max_steps=12", "--model.learning_rate=0.5", "--tag=other"]
    code, out, err = run("fit", "--ckpt_path", half, *options)
    assert code == 0, err
    block = out.split("What differs from before:\n")[1]
    told = [line.strip() for line in block.splitlines() if line.startswith("    ")]
    assert told[:5] == [
        "tag: tiny -> other",
        "trainer.max_steps: 11 -> 12",
        "model.init_args.learning_rate: 0.01 -> 0.5",
        f"git_commit: c0ffee -> {commit}",
        f"packages.torch: 1.0 -> {torch_version}",
    ]


def test_a_session_folder_inside_the_repository_is_no_change_of_the_code(
    run, fit, tmp_path, monkeypatch
):
    code = tmp_path / "code"
    code.mkdir()
    (code / "cli.py").write_text("print(1)\n")
    git = ["git", "-C", code, "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(sys, "argv", [str(code / "cli.py")])
    options = ["--output_path", code / "runs", "--trainer.max_steps"]
    assert run("fit", "--config", tmp_path / "tiny.yaml", *options, "5")[0] == 0
    [session] = (code / "runs").iterdir()
    assert "uncommitted.patch" not in names(session)
    assert yaml.safe_load((session / "environment.yaml").read_text())["git_dirty"] is False
    code, out, err = run("fit", "--ckpt_path", session, "--trainer.max_steps", "6")
    assert code == 0, err
    assert "uncommitted" not in out


def test_reaching_the_end_leaves_nothing_to_do_and_says_how_to_go_on(run, done):
    before = contents(done)
    code, out, err = run("fit", "--ckpt_path", done)
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == (
        "error: nothing left to do: iteration 23 of 23 is reached. "
        "To go on, raise `--trainer.max_steps` above 23"
    )
    assert contents(done) == before


@pytest.mark.parametrize("damaged", ["last", "best"])
def test_a_damaged_checkpoint_is_passed_over_and_named(run, half, damaged):
    iteration = {name: torch.load(half / f"checkpoints/{name}.ckpt")["global_step"]
                 for name in ("last", "best")}  # fmt: skip
    path = half / f"checkpoints/{damaged}.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    command = ["fit", "--trainer.max_steps", "12"] if damaged == "last" else ["test"]
    code, out, err = run(*command, "--ckpt_path", half)
    reason = "is truncated, damaged or no checkpoint"
    assert (code, err) == (0, f"{path} {reason}: passed over\n")
    other = iteration["best" if damaged == "last" else "last"]
    assert f"after iteration {other}\n" in out or f"(iteration {other})\n" in out


def test_a_damaged_checkpoint_is_named_in_the_log(run, half, monkeypatch):
    use_descriptors(monkeypatch)
    (half / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert run("fit", "--trainer.max_steps", "12", "--ckpt_path", half)[0] == 0
    assert "last.ckpt is empty: passed over\n" in (half / "log.txt").read_text()


def test_with_a_config_a_new_session_starts_from_the_checkpoint(run, half, whole, sessions, config):
    before = contents(half)
    code, out, err = run("fit", "--ckpt_path", half, "--config", config)
    assert code == 0, err
    [session] = sessions()
    assert out.startswith(
        f"Session: {session}\nCheckpoint: {half}/checkpoints/last.ckpt (iteration 11)\n"
    )
    assert contents(half) == before
    assert min(logged(session, "train/loss")) > 11
    assert same(weights(session), weights(whole))


def test_a_new_session_takes_the_weights_of_the_checkpoint_and_the_settings_of_the_file(
    run, whole, sessions, config
):
    start = weights(whole, "best")
    path = whole / "checkpoints" / "best.ckpt"
    options = ["--model.learning_rate=0", "--trainer.max_steps=30", "--tag=again"]
    assert run("fit", "--ckpt_path", path, "--config", config, *options)[0] == 0
    [session] = sessions()
    assert settings(session)["tag"] == "again"
    for key, value in weights(session).items():
        if "running_" not in key and "num_batches" not in key:  # batch norm counts all the same
            assert torch.equal(value, start[key]), key


def test_a_file_can_name_the_checkpoint(run, first_half, whole, sessions, config, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text(f"ckpt_path: {first_half}/checkpoints/last.ckpt\n")
    assert run("fit", "--config", config, "--config", more)[0] == 0
    [session] = sessions()
    assert min(logged(session, "train/loss")) > 11
    assert same(weights(session), weights(whole))


def test_a_checkpoint_file_is_enough_alone(run, fit, sessions, tmp_path):
    first = fit()
    expected, val_loss = weights(first), logged(first, "val/loss")
    file = tmp_path / "a" / "b" / "copy.ckpt"
    file.parent.mkdir(parents=True)
    shutil.copy(first / "checkpoints" / "best.ckpt", file)
    iteration = torch.load(file)["global_step"]
    assert iteration < 23
    shutil.rmtree(first)
    code, out, err = run("test", "--ckpt_path", file)
    assert code == 0, err
    assert f"Checkpoint: {file} (iteration {iteration})\n" in out
    assert f"Test loss: {val_loss[iteration]:.4f}\n" in out  # the tiny test data are the val data
    [tested] = sessions()
    code, _, err = run("fit", "--ckpt_path", file)
    assert code == 0, err
    fitted = (set(sessions()) - {tested}).pop()
    assert same(weights(fitted), expected)


def test_a_new_session_does_not_take_over_the_best_score_of_the_one_it_starts_from(
    run, whole, sessions, config
):
    path = whole / "checkpoints" / "best.ckpt"
    code, out, _ = run("fit", "--ckpt_path", path, "--config", config)
    assert code == 0
    [session] = sessions()
    assert "New best score (accuracy, higher is better): -inf -> " in out
    best = torch.load(session / "checkpoints" / "best.ckpt")["global_step"]
    assert best > torch.load(path)["global_step"]
    assert f" at iteration {best}\n" in out


def told(out: str) -> list[str]:
    """What differs from the first start, without what the machine adds."""
    block = out.partition("What differs from before:\n")[2]
    lines = [line.strip() for line in block.splitlines() if line.startswith("    ")]
    return [line for line in lines if not line.startswith(("git_", "uncommitted"))]


def test_what_differs_is_told_from_the_first_start_also_if_config_yaml_was_edited(run, half):
    def edit(old: str, new: str) -> None:
        text = (half / "config.yaml").read_text()
        assert old in text
        (half / "config.yaml").write_text(text.replace(old, new))

    def go_on(*options: str) -> list[str]:
        code, out, err = run("fit", "--ckpt_path", half, *options)
        assert (code, err) == (0, "")
        return told(out)

    edit("max_steps: 11", "max_steps: 12")
    assert go_on() == ["trainer.max_steps: 11 -> 12"]
    more = "trainer.max_steps: 11 -> 13"
    assert go_on("--trainer.max_steps=13") == [more]
    edit("learning_rate: 0.01", "learning_rate: 0.02")
    edit("max_steps: 13", "max_steps: 14")
    rate = "model.init_args.learning_rate: 0.01 -> 0.02"
    assert go_on()[:2] == [more.replace("13", "14"), rate]
    kept = [settings(half, f"config_{n}.yaml") for n in (1, 2, 3)]
    assert [each["trainer"]["max_steps"] for each in kept] == [11, 12, 13]
    assert not (half / "config_4.yaml").exists()


@pytest.mark.parametrize(
    "content", [b"", b"tag: [", b"- 1\n", b"hello", bytes(range(256)), b"\xff\xfe\0", None]
)
def test_a_session_whose_config_is_damaged_goes_on_by_that_in_the_checkpoint(run, half, content):
    before = (half / "config.yaml").read_text()
    (half / "config.yaml").unlink()
    if content is not None:
        (half / "config.yaml").write_bytes(content)
    code, _, err = run("fit", "--ckpt_path", half, "--trainer.max_steps", "12")
    assert code == 0
    assert err == (
        f"{half}/config.yaml is gone, empty or damaged: the settings in "
        f"{half}/checkpoints/last.ckpt are taken\n"
    )
    after = (half / "config.yaml").read_text()
    assert after == before.replace(
        f"max_steps: {yaml.safe_load(before)['trainer']['max_steps']}", "max_steps: 12"
    )


@pytest.mark.parametrize(
    "content",
    [None, b"", b"host: [", b"- 1\n", bytes(range(256)), b"restarts: hello", b"restarts: [1]"],
)
def test_a_session_whose_environment_is_gone_or_damaged_goes_on(run, half, content):
    (half / "environment.yaml").unlink()
    if content is not None:
        (half / "environment.yaml").write_bytes(content)
    code, out, err = run("fit", "--ckpt_path", half, "--trainer.max_steps", "12")
    assert code == 0, err
    assert "python" in (half / "environment.yaml").read_text()
    if content is not None:
        damaged = f"{half}/environment.yaml is damaged: kept as environment_1.yaml and written anew"
        assert damaged in told(out)
        assert (half / "environment_1.yaml").read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", bytes(range(256)), b"[" * 5000])
def test_a_session_whose_run_json_is_damaged_goes_on_and_says_so(run, half, content):
    (half / "run.json").write_bytes(content)
    code, out, err = run("fit", "--ckpt_path", half, "--trainer.max_steps", "12")
    assert (code, err) == (0, "")
    assert f"{half}/run.json is damaged: written anew" in told(out)


FILES = (
    "config.yaml",
    "environment.yaml",
    "log.txt",
    "metrics.csv",
    "run.json",
    "failure.txt",
    ".lock",
)


@pytest.mark.parametrize("name", [*FILES, "checkpoints"])
def test_a_folder_in_the_place_of_a_file_is_one_message_and_changes_nothing(run, half, name):
    path = half / name
    if name == "checkpoints":
        shutil.rmtree(path)
        path.write_text("hello")
    else:
        path.unlink(missing_ok=True)
        path.mkdir()
        (path / "inside").write_text("hello")
    before = contents(half)
    code, out, err = run("fit", "--ckpt_path", half, "--trainer.max_steps", "12")
    assert (code, out) == (2, "")
    reason = f"{path} is no file, and the run writes one there: move it away"
    if name == "checkpoints":
        reason = f"{half} has no checkpoint to use"
    assert err.startswith(f"error: {reason}")
    assert contents(half) == before


@pytest.mark.parametrize("text", [None, "", "step,train/loss\n", "step,train/lo"])
def test_a_session_whose_metrics_are_gone_or_damaged_goes_on(run, half, text):
    (half / "metrics.csv").unlink()
    if text is not None:
        (half / "metrics.csv").write_text(text)
    code, _, err = run("fit", "--ckpt_path", half, "--trainer.max_steps", "12")
    assert code == 0, err
    assert list(logged(half, "train/loss")) == [12]
    assert list(logged(half, "val/loss")) == [12]
