"""The session folder: its name, what is in it, and which checkpoint to go on from."""

import os
import socket
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml

from lightning_trainer.session import folder as session_module
from lightning_trainer.session.environment import (
    describe_environment,
    installed_packages,
    shown_command,
    uncommitted_changes,
)
from lightning_trainer.session.folder import (
    Session,
    check_tag,
    go_on_command,
)

NOON = datetime(2024, 2, 29, 12, 0, 7)


class Noon(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, *args):
        return NOON


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(session_module, "datetime", Noon)
    monkeypatch.setattr(socket, "gethostname", lambda: "node_7.cluster.example.org")


# The folder's name ----------------------------------------------------------------------------


def test_the_name_has_machine_time_and_tag(clock, tmp_path):
    session = Session.create(str(tmp_path / "a" / "b"), "lr3e-3")
    assert session.path == tmp_path / "a/b/session_node-7_2024_02_29_12_00_07_lr3e-3"
    assert session.path.is_dir()


def test_runs_of_the_same_second_get_a_folder_each(clock, tmp_path):
    names = [Session.create(str(tmp_path), "x").path.name for _ in range(3)]
    base = "session_node-7_2024_02_29_12_00_07_x"
    assert names == [base, f"{base}_2", f"{base}_3"]
    assert sorted(names) == sorted(os.listdir(tmp_path))


@pytest.mark.parametrize("tag", ["a/b", "..", "a b", "", "x" * 300, ".hidden", "-x", "a\n", "ü"])
def test_a_tag_that_is_no_part_of_a_name_is_refused_with_the_rule(tag, tmp_path):
    with pytest.raises(ValueError) as caught:
        Session.create(str(tmp_path), tag)
    assert str(caught.value) == (
        f"`tag` is {tag!r}: use 1 to 100 letters, digits and any of _ . , = + @ - "
        "(it becomes part of the folder's name)"
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("tag", ["a", "lr=3e-3,wd=0", "v1.2+x@y", "7", "x" * 100])
def test_other_tags_are_allowed(tag, tmp_path):
    check_tag(tag)
    assert Session.create(str(tmp_path), tag).path.name.endswith(f"_{tag}")


@pytest.mark.parametrize("inside", ["", "/deeper"])
def test_an_output_path_with_a_file_in_the_way_is_one_message(inside, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        Session.create(f"{tmp_path}/file{inside}", "x")
    message = str(caught.value)
    assert message.startswith(f"`output_path` is '{tmp_path}/file{inside}', where no session")
    assert message.endswith("give a folder that you may write to")
    assert "\n" not in message


# config.yaml ----------------------------------------------------------------------------------


def test_the_config_says_how_to_run_it_and_holds_the_text(tmp_path):
    session = Session(tmp_path)
    session.write_config("tag: a\n")
    assert session.config.read_text() == "# python cli.py fit --config config.yaml\ntag: a\n"


def test_an_earlier_config_is_kept_where_settings_change_only(tmp_path):
    session = Session(tmp_path)
    for tag in ("a", "a", "b", "b", "c"):
        session.write_config(f"tag: {tag}\n")
    kept = {path.name: yaml.safe_load(path.read_text())["tag"] for path in tmp_path.iterdir()}
    assert kept == {"config_1.yaml": "a", "config_2.yaml": "b", "config.yaml": "c"}


# environment.yaml -----------------------------------------------------------------------------


def git(folder: Path, *args: object) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    result = subprocess.run([*command, *map(str, args)], check=True, capture_output=True, text=True)
    return result.stdout.strip()


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A git repository with one commit, whose program is the one that was started."""
    code = tmp_path / "code"
    (code / "projects").mkdir(parents=True)
    git(tmp_path, "init", "-q", code)
    (code / "cli.py").write_text("print(1)\n")
    (code / "projects" / "model.py").write_text("width = 8\ndepth = 2\n")
    (code / "dos.py").write_bytes(b"a = 1\r\nb = 2\r\n")
    git(code, "add", ".")
    git(code, "commit", "-qm", "first")
    monkeypatch.setattr(sys, "argv", [str(code / "cli.py"), "fit", "--tag", "a b"])
    return code


def files(folder: Path) -> dict[str, tuple[bytes, bool]]:
    """Content and executable bit of all files outside .git."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {
        str(path.relative_to(folder)): (path.read_bytes(), os.access(path, os.X_OK))
        for path in paths
    }


def test_the_environment_tells_code_machine_versions_and_job(code, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    session = Session(tmp_path)
    assert (
        session.record_environment(
            describe_environment(shown_command(["fit", "--tag", "a b"]), 4, Path("sessions")),
            uncommitted_changes(Path("sessions")),
        )
        == []
    )
    recorded = yaml.safe_load(session.environment.read_text())
    assert recorded["command"] == f"python {code}/cli.py fit --tag 'a b'"
    assert abs(datetime.now().astimezone() - datetime.fromisoformat(recorded["started"])).days == 0
    assert recorded["host"] == socket.gethostname()
    assert recorded["n_processes"] == 4
    assert recorded["job_id"] == "4711"
    assert recorded["git_commit"] == git(code, "rev-parse", "HEAD")
    assert recorded["git_dirty"] is False
    assert recorded["python"] == ".".join(map(str, sys.version_info[:3]))
    assert recorded["packages"]["torch"] == metadata.version("torch")
    assert recorded["packages"]["lightning"] == metadata.version("lightning")
    assert "gpus" not in recorded  # is added when the run's devices are known
    assert not (tmp_path / "uncommitted.patch").exists()


def test_a_program_in_a_subfolder_belongs_to_the_whole_repository(code, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(code / "projects" / "run.py")])
    (code / "cli.py").write_text("print(2)\n")
    assert describe_environment("fit", 1, Path("sessions"))["git_commit"] == git(
        code, "rev-parse", "HEAD"
    )
    assert "+print(2)" in uncommitted_changes(Path("sessions"))


@pytest.mark.parametrize("has_git", [True, False])
def test_code_outside_any_repository_or_without_git_has_no_commit(tmp_path, monkeypatch, has_git):
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "cli.py")])
    if not has_git:
        monkeypatch.setenv("PATH", str(tmp_path))
    environment = describe_environment("fit", 1, Path("sessions"))
    assert environment["git_commit"] is None
    assert environment["git_dirty"] is False
    assert uncommitted_changes(Path("sessions")) == ""


def test_a_repository_without_a_commit_is_no_error(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q", tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "cli.py")])
    (tmp_path / "cli.py").write_text("print(1)\n")
    assert describe_environment("fit", 1, Path("sessions"))["git_commit"] is None
    assert "+print(1)" in uncommitted_changes(Path("sessions"))


def change_text(code: Path) -> None:
    (code / "projects" / "model.py").write_text("width = 16\ndepth = 2")  # no newline at its end
    (code / "new model.py").write_text("größe = 1\n")


def change_names(code: Path) -> None:
    git(code, "mv", "cli.py", "run.py")
    (code / "projects" / "model.py").unlink()
    (code / "run.py").chmod(0o755)
    (code / "empty.py").touch()


def change_bytes(code: Path) -> None:
    (code / "projects" / "model.py").write_bytes(b"width = '\xe4'\n")
    (code / "table.bin").write_bytes(bytes(range(256)))


def change_dos(code: Path) -> None:
    (code / "dos.py").write_bytes(b"a = 1\r\nb = 3\r\n")


@pytest.mark.parametrize("change", [change_text, change_names, change_bytes, change_dos])
def test_the_patch_turns_a_clean_checkout_into_the_code_that_ran(code, tmp_path, change):
    git(tmp_path, "clone", "-q", code, "clean")
    change(code)
    session = Session(tmp_path)
    session.record_environment(
        describe_environment("fit", 1, Path("sessions")), uncommitted_changes(Path("sessions"))
    )
    assert yaml.safe_load(session.environment.read_text())["git_dirty"] is True
    git(tmp_path / "clean", "apply", tmp_path / "uncommitted.patch")
    assert files(tmp_path / "clean") == files(code)


@pytest.mark.parametrize(
    "setting", [("diff.noprefix", "true"), ("diff.external", "true"), ("color.ui", "always")]
)
def test_a_users_git_settings_do_not_spoil_the_patch(code, tmp_path, setting):
    git(tmp_path, "clone", "-q", code, "clean")
    git(code, "config", *setting)
    change_text(code)
    (tmp_path / "a.patch").write_text(uncommitted_changes(Path("sessions")))
    git(tmp_path / "clean", "apply", tmp_path / "a.patch")
    assert files(tmp_path / "clean") == files(code)


def test_large_untracked_and_ignored_files_are_not_in_the_patch(code):
    (code / "small.py").write_text("small = 1\n")
    (code / "large.txt").write_text("large = 1\n" * 20_000)
    (code / "secret.txt").write_text("ignored\n")
    (code / ".gitignore").write_text("secret.txt\n")
    patch = uncommitted_changes(Path("sessions"))
    assert "+small = 1" in patch
    assert "+secret.txt" in patch  # the rule, which is an untracked file itself
    assert "large" not in patch
    assert "+ignored" not in patch


GROUP = """secrets:
  db: abc
  more: [a]
data:
  passwords:
  - abc
  - def
  width: 3
"""


def test_a_patch_has_stars_for_secrets_in_settings_and_in_code(code):
    (code / "mine.yaml").write_text("password: abc def\nlearning_rate: 0.1\n" + GROUP)
    (code / "mine.py").write_text("password = 'abc'\nlog_in(password, token=token2)\n")
    key = "-----BEGIN PRIVATE KEY-----\nMIIE\nAAA=\n-----END PRIVATE KEY-----\n"
    (code / "key").write_text(key)
    (code / "store.bin").write_bytes(b"\0\1 hunter2-or-so \0")
    (code / "other.bin").write_bytes(b"\0\1 nothing \0")
    patch = uncommitted_changes(Path("sessions"), ["hunter2-or-so"])
    assert "+password: ***\n+learning_rate: 0.1\n" in patch
    assert "+secrets:\n+***\n+***\n+data:\n+  passwords:\n+***\n+***\n+  width: 3\n" in patch
    assert "+password = '***'\n+log_in(password, token=token2)\n" in patch
    assert "+-----BEGIN PRIVATE KEY-----\n+***\n+***\n+-----END PRIVATE KEY-----\n" in patch
    assert "other.bin" in patch
    assert "store.bin" not in patch


def test_files_that_hold_secrets_as_a_rule_are_not_in_the_patch(code):
    private = [".env", ".env.local", "a.pem", "deep/er/b.key", "id_rsa.old", ".netrc", "deep/.ENV"]
    private += ["id_ed25519", "deploy_ed25519", ".envrc", "prod.env", ".git-credentials", ".pgpass"]
    private += [".npmrc", ".pypirc", "deep/kaggle.json", "secrets.yaml", "my-secrets.json", "a.p12"]
    private += ["my_credentials.json", "my_service-account.json", "a.tfvars", ".bash_history"]
    (code / "deep" / "er").mkdir(parents=True)
    for name in [*private, "credentials.json"]:
        (code / name).write_text("private = 1\n")
    sessions = Path("sessions")
    assert uncommitted_changes(sessions) == ""  # as untracked files
    assert describe_environment("fit", 1, sessions)["git_dirty"] is False
    git(code, "add", ".")
    git(code, "commit", "-qm", "second")
    (code / "credentials.json").write_text("private = 2\n")
    (code / ".netrc").unlink()
    assert uncommitted_changes(sessions) == ""  # as tracked ones
    others = [
        "env.py",
        "pem",
        "key.py",
        "deep/environment.py",
        "secrets.py",
        "tokens.py",
        "ids.txt",
    ]
    for name in others:
        (code / name).write_text("public = 1\n")
    patch = uncommitted_changes(sessions)
    assert patch.count("+public = 1\n") == len(others)
    assert "private" not in patch


def test_a_sessions_folder_of_any_name_is_no_change_of_the_code(code, monkeypatch):
    monkeypatch.chdir(code)
    sessions = code / "runs [1]*"
    sessions.mkdir()
    (sessions / "log.py").write_text("a = 1\n")
    assert uncommitted_changes(sessions) == ""
    assert describe_environment("fit", 1, Path(sessions.name))["git_dirty"] is False


def test_a_later_start_is_added_and_what_differs_is_returned(tmp_path):
    session = Session(tmp_path)
    first = {"command": "a", "started": "1", "job_id": "1", "git_commit": "c0", "packages": {}}
    first["packages"] = {"torch": "2.0", "numpy": "1.0"}
    second = {**first, "command": "b", "started": "2", "job_id": "2"}
    third = {**second, "git_commit": "c1", "packages": {"torch": "2.1", "numpy": "1.0"}}
    assert session.record_environment(dict(first), "") == []
    assert session.record_environment(dict(second), "") == []
    assert session.record_environment(dict(third), "") == [
        "git_commit: c0 -> c1",
        "packages.torch: 2.0 -> 2.1",
    ]
    recorded = yaml.safe_load(session.environment.read_text())
    assert recorded == {**first, "restarts": [second, third]}


def test_the_packages_of_each_start_are_kept_and_what_differs_is_returned(tmp_path):
    session = Session(tmp_path)
    first = {"torch": "2.0", "numpy": "1.0", "scipy": "1"}
    session.record_environment({"packages": {"torch": "2.0"}}, "")
    assert session.record_packages(first) == session.record_packages(first) == []
    assert (tmp_path / "packages.txt").read_text() == "torch==2.0\nnumpy==1.0\nscipy==1\n"
    second = {"torch": "2.1", "numpy": "1.1", "tqdm": "4"}  # torch is in environment.yaml
    for _ in range(2):
        assert session.record_packages(second) == [
            "packages.numpy: 1.0 -> 1.1",
            "packages.scipy: 1 -> None",
            "packages.tqdm: None -> 4",
        ]
    assert [path.name for path in tmp_path.glob("packages_*")] == ["packages_1.txt"]


def test_every_package_is_known_by_its_folder():
    packages = installed_packages()
    assert packages["torch"] == metadata.version("torch")
    assert len(packages) > 20
    assert "lightning_trainer" not in packages  # no index has it: `pip install -r` would fail


def test_the_gpus_of_a_start_are_added_to_it_and_compared_with_the_first(tmp_path):
    session = Session(tmp_path)
    first = {"gpus": ["A, 1"], "gpu_kernels": {"matmul_tf32": False, "deterministic": True}}
    second = {"gpus": ["A, 2"], "gpu_kernels": {"matmul_tf32": True, "deterministic": True}}
    found = []
    for gpus in (first, first, second, {"gpus": []}):
        assert session.record_environment({"command": "a"}, "") == []
        found.append(session.record_gpus(gpus))
    changed = ["gpus: ['A, 1'] -> ['A, 2']", "gpu_kernels.matmul_tf32: False -> True"]
    assert found == [[], [], changed, ["gpus: ['A, 1'] -> []"]]
    restarts = [{"command": "a", **gpus} for gpus in (first, second, {"gpus": []})]
    assert yaml.safe_load(session.environment.read_text()) == {
        **{"command": "a", **first},
        "restarts": restarts,
    }


def test_a_later_patch_is_kept_beside_the_first_where_it_differs(tmp_path):
    session = Session(tmp_path)
    session.record_environment({"command": "a"}, "patch 1\n")
    assert session.record_environment({"command": "b"}, "patch 1\n") == []
    assert session.record_environment({"command": "c"}, "patch 2\n") == [
        "uncommitted changes: see uncommitted_1.patch"
    ]
    assert (tmp_path / "uncommitted.patch").read_text() == "patch 1\n"
    assert (tmp_path / "uncommitted_1.patch").read_text() == "patch 2\n"
    restarts = yaml.safe_load(session.environment.read_text())["restarts"]
    assert [restart.get("patch") for restart in restarts] == [None, "uncommitted_1.patch"]


# Checkpoints ----------------------------------------------------------------------------------


def save(path: Path, value: float = 1.0) -> Path:
    path.parent.mkdir(exist_ok=True)
    torch.save({"global_step": 3, "state_dict": {"w": torch.full((200,), value)}}, path)
    return path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((200,), 1.0).numpy().tobytes()) + 400] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.fixture
def session(tmp_path):
    """A folder with a config and both checkpoints."""
    session = Session(tmp_path / "session_x")
    session.path.mkdir()
    session.write_config("tag: x\n")
    save(session.best_checkpoint)
    save(session.last_checkpoint)
    return session


@pytest.mark.parametrize(("best", "name"), [(True, "best.ckpt"), (False, "last.ckpt")])
def test_the_best_checkpoint_is_tested_and_the_last_one_gone_on_from(session, best, name):
    assert session.find_checkpoint(best) == (session.path / "checkpoints" / name, [])


@pytest.mark.parametrize("best", [True, False])
@pytest.mark.parametrize("damage", [truncate, flip_bit, empty])
def test_a_damaged_checkpoint_is_passed_over_and_named(session, best, damage):
    wanted, other = session.best_checkpoint, session.last_checkpoint
    if not best:
        wanted, other = other, wanted
    damage(wanted)
    path, passed_over = session.find_checkpoint(best)
    assert path == other
    why = {truncate: "is truncated", flip_bit: "is damaged: the checksum of", empty: "is empty"}
    assert [text.startswith(f"{wanted} {why[damage]}") for text in passed_over] == [True]


@pytest.mark.parametrize("best", [True, False])
def test_the_other_checkpoint_serves_where_there_is_one_only(session, best):
    (session.best_checkpoint if best else session.last_checkpoint).unlink()
    path, passed_over = session.find_checkpoint(best)
    assert path.exists()
    assert passed_over == []


def test_a_session_whose_checkpoints_are_all_damaged_names_them_and_the_way_out(session):
    truncate(session.last_checkpoint)
    flip_bit(session.best_checkpoint)
    with pytest.raises(FileNotFoundError) as caught:
        session.find_checkpoint(False)
    message = str(caught.value)
    assert f"{session.last_checkpoint} is truncated, damaged or no checkpoint" in message
    assert f"{session.best_checkpoint} is damaged: the checksum of `" in message
    assert message.endswith(f"Start again with `fit --config {session.config}`")


def test_a_session_without_checkpoints_says_so_and_the_way_out(session):
    session.last_checkpoint.unlink()
    session.best_checkpoint.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        session.find_checkpoint(True)
    assert str(caught.value) == (
        f"{session.path} has no checkpoint to use: it stopped before its first one was written. "
        f"Start again with `fit --config {session.config}`"
    )


# Who may read it ------------------------------------------------------------------------------


def test_all_files_have_the_permissions_that_the_user_has_set(run, config, sessions):
    before = os.umask(0o027)
    try:
        for command in (["fit", "--config", config], ["fit", "--trainer.max_steps", "24"]):
            restart = ["--ckpt_path", sessions()[0]] if sessions() else []
            code, _, err = run(*command, *restart)
            assert code == 0, err
        for command in ("test", "predict"):
            assert run(command, "--ckpt_path", sessions()[0])[0] == 0
    finally:
        os.umask(before)
    paths = list(sessions()[0].rglob("*"))
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in paths}
    assert {".lock", "config_1.yaml", "best.ckpt", "metrics.csv", "predictions.pt"} < modes.keys()
    assert {modes.pop("checkpoints")} == {"0o750"}
    assert set(modes.values()) == {"0o640"}, modes


# Which session a path means -------------------------------------------------------------------


def test_a_folder_is_the_session_wherever_it_was_moved(session, tmp_path):
    moved = tmp_path / "elsewhere"
    session.path.rename(moved)
    assert Session.around(moved).path == moved
    found, _ = Session.around(moved).find_checkpoint(True)
    assert found == moved / "checkpoints/best.ckpt"


def test_a_checkpoint_file_lies_in_its_session(session):
    assert Session.around(session.best_checkpoint).path == session.path


def test_a_relative_path_stays_relative(session, monkeypatch):
    monkeypatch.chdir(session.path.parent)
    assert Session.around("session_x").path == Path("session_x")
    assert Session.around("session_x/checkpoints/best.ckpt").path == Path("session_x")
    monkeypatch.chdir(session.path / "checkpoints")
    assert Session.around("best.ckpt").path == session.path


def test_a_sharded_checkpoint_lies_in_its_session(session):
    session.last_checkpoint.unlink()
    session.last_checkpoint.mkdir()
    (session.last_checkpoint / "meta.pt").touch()
    assert Session.around(session.last_checkpoint).path == session.path


def test_a_folder_or_file_elsewhere_is_in_no_session(session, tmp_path):
    copy = save(tmp_path / "weights" / "best.ckpt")
    assert Session.around(copy) is None
    assert Session.around(tmp_path) is None


def test_a_config_of_something_else_two_levels_up_makes_no_session(tmp_path):
    (tmp_path / "config.yaml").write_text("a config of the project's own\n")
    assert Session.around(save(tmp_path / "weights" / "best.ckpt")) is None


def test_the_command_to_go_on_can_be_pasted_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "my code" / "cli.py")])
    command = go_on_command("fit", Path("experiments/session x"))
    assert command == "python 'my code/cli.py' fit --ckpt_path 'experiments/session x'"
