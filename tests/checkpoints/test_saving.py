"""Which checkpoints are written, when, and what is in them."""

import errno
import os
import re
import threading

import lightning.pytorch as pl
import pytest
import scripted
import torch
import yaml
from conftest import TinyModule
from restarts import Killed, copy_at, kill_at, result, same
from scripted import PROJECT, validated

from lightning_trainer.checkpoints import writing as checkpoints
from lightning_trainer.session.checkpoint_header import KEY, layer_state
from lightning_trainer.session.folder import Session


@pytest.fixture
def script(monkeypatch):
    return scripted.start(monkeypatch)


@pytest.fixture(params=[False, True], ids=["waits", "goes on meanwhile"])
def meanwhile(request, monkeypatch):
    """Whether training goes on while a checkpoint is written, as it does on a GPU."""
    monkeypatch.setattr(checkpoints, "goes_on_meanwhile", lambda trainer: request.param)
    return request.param


def weight(checkpoint: dict) -> float:
    return checkpoint["state_dict"]["model.0"].item()


def test_best_holds_the_weights_of_the_best_score_and_last_those_of_the_end(
    run, config, script, sessions, meanwhile
):
    script.scores = {5: 0.25, 10: 0.75, 15: 0.5, 20: 0.75, 23: 0.625}
    assert run("fit", "--config", config, *PROJECT)[0] == 0
    folder = sessions()[0] / "checkpoints"
    best, last = torch.load(folder / "best.ckpt"), torch.load(folder / "last.ckpt")
    assert (best["global_step"], weight(best)) == (10, -10 / 8)
    assert (last["global_step"], weight(last)) == (23, -23 / 8)
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]


# An iteration takes 10 s below, a validation 1.5 s, and 12 s are a fifth of a minute.
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        # A tenth of `save_minutes` has not passed before any validation.
        (("--save_minutes=20",), [0, 10, 20, 23]),
        # It has at 10 and 20, not at 23.
        (("--save_minutes=10",), [0, 10, 10, 20, 20, 23]),
        # A minute has passed at 6 and 16. Before each validation a tenth of it has.
        (("--save_minutes=1",), [0, 6, 10, 10, 16, 20, 20, 23, 23]),
        (("--save_minutes=0", "--trainer.max_steps=4"), [0, 1, 2, 3, 4, 4]),
    ],
)
def test_they_are_written_after_validations_and_where_much_would_be_lost(
    run, config, script, flags, expected
):
    script.forward_s = 9.75
    flags = ("--trainer.val_check_interval=10", *flags)
    code, _, err = run("fit", "--config", config, *PROJECT, *flags)
    assert (code, script.written) == (0, expected), err


def test_gradients_that_are_being_accumulated_are_in_no_checkpoint(run, config, script):
    flags = ("--trainer.accumulate_grad_batches=2", "--trainer.max_steps=4", "--save_minutes=0")
    code, _, err = run("fit", "--config", config, *PROJECT, *flags)
    assert (code, script.written) == (0, [0, 1, 2, 3, 4, 4]), err


@pytest.mark.long
@pytest.mark.parametrize(
    ("hook", "save_minutes"),
    [("on_validation_start", 0), ("on_validation_batch_end", 0), ("on_validation_batch_end", 10)],
)
def test_killed_inside_a_validation_it_goes_on_bitwise_and_validates_in_full(
    run, config, sessions, monkeypatch, tmp_path, hook, save_minutes, meanwhile
):
    flags = (f"--save_minutes={save_minutes}", "--model.schedule=plateau")
    with monkeypatch.context() as patch:
        copy_at(patch, hook, (10, 23), tmp_path / "killed")
        assert run("fit", "--config", config, *flags)[0] == 0
    expected = result(sessions()[0])
    for k in (10, 23):
        session = tmp_path / "killed" / str(k)
        code, out, err = run("fit", "--ckpt_path", session)
        assert code == 0, err
        assert same(result(session), expected), f"killed in the validation after {k}"
        assert out.count("Val loss") == len([n for n in (5, 10, 15, 20, 23) if n >= k])


def test_killed_before_its_first_validation_a_run_starts_again_in_the_same_session(
    run, config, sessions, monkeypatch
):
    assert run("fit", "--config", config)[0] == 0
    kill_at(monkeypatch, "on_train_batch_end", lambda trainer: trainer.global_step == 3)
    with pytest.raises(Killed):
        run("fit", "--config", config)
    code, out, err = run("fit", "--ckpt_path", sessions()[1])
    assert code == 0, err
    assert "after iteration 0\n" in out
    assert same(result(sessions()[1]), result(sessions()[0]))


@pytest.mark.long
def test_killed_between_two_checkpoint_files_it_goes_on_bitwise_with_the_right_best(
    run, config, sessions, monkeypatch, meanwhile
):
    assert run("fit", "--config", config)[0] == 0
    expected = result(sessions()[0])
    replace = os.replace

    def dying(source: str, target: str) -> None:
        replace(source, target)
        files.extend([target] if str(target).endswith(".ckpt") else [])
        if len(files) == n_files:
            raise Killed

    for n_files in (1, 2, 3):
        files: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            with pytest.raises(Killed):
                run("fit", "--config", config)
        assert run("fit", "--ckpt_path", sessions()[-1])[0] == 0
        assert same(result(sessions()[-1]), expected), f"killed after file {n_files}"


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_best_stays_as_it_is_when_last_is_written_again(
    run, config, script, sessions, monkeypatch, links, meanwhile
):
    if not links:

        def refuse(*args: object) -> None:
            raise OSError("Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    script.scores = {5: 0.25, 10: 0.5, 15: 0.125}
    assert run("fit", "--config", config, *PROJECT, "--trainer.max_steps=10")[0] == 0
    session = Session(sessions()[0])
    best, last = session.best_checkpoint, session.last_checkpoint
    before = best.read_bytes()
    assert last.read_bytes() == before
    assert best.samefile(last) == links
    assert run("fit", "--ckpt_path", session.path, "--trainer.max_steps=15")[0] == 0
    assert best.read_bytes() == before
    assert (torch.load(best)["global_step"], torch.load(last)["global_step"]) == (10, 15)


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that is full at the given iterations."""
    save = torch.save
    full_at: set[int] = set()

    def save_or_fail(checkpoint: dict, file, **kwargs) -> None:
        if checkpoint["global_step"] in full_at:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        save(checkpoint, file, **kwargs)

    monkeypatch.setattr(torch, "save", save_or_fail)
    return full_at


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_ones_and_is_tried_again(
    run, config, script, sessions, full_disk
):
    script.scores = {5: 0.25, 10: 0.75, 15: 0.5, 20: 0.125, 23: 0.125}
    full_disk.add(10)
    code, out, err = run("fit", "--config", config, *PROJECT)
    assert code == 0, err
    folder = sessions()[0] / "checkpoints"
    mib = r"\d+\.\d MiB"
    told = re.findall(
        rf"^error: {folder}/(\w+).ckpt can't be written: No space left on device, {mib} free, "
        rf"about {mib} needed. Training goes on and tries again later; last.ckpt is still that of "
        r"iteration 5$",
        err,
        flags=re.MULTILINE,
    )
    assert told == ["best", "best", "last"]
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    # The weights of iteration 10 are gone, so the next best is the best of what is kept.
    best, last = torch.load(folder / "best.ckpt"), torch.load(folder / "last.ckpt")
    assert (best["global_step"], last["global_step"]) == (15, 23)
    assert last["lightning_trainer"]["best"]["score"] == 0.5
    assert "New best score (points, higher is better): 0.250 -> 0.500" in out


def test_a_run_whose_end_cannot_be_written_fails_and_says_what_is_kept(
    run, config, script, sessions, full_disk, meanwhile
):
    full_disk.add(23)
    code, _, err = run("fit", "--config", config, *PROJECT)
    assert code == 1
    assert "Traceback" not in err
    last = sessions()[0] / "checkpoints/last.ckpt"
    assert err.splitlines()[-1].startswith(f"error: {last} can't be written: No space left on")
    assert err.endswith(
        "Make room or give another `output_path`; what is saved is that of iteration 20\n"
    )
    full_disk.clear()
    assert run("fit", "--ckpt_path", sessions()[0])[0] == 0
    assert torch.load(last)["global_step"] == 23


def test_a_disk_that_is_full_at_the_start_ends_the_run_before_it_trains(
    run, config, script, full_disk, meanwhile
):
    full_disk.add(0)
    code, out, err = run("fit", "--config", config, *PROJECT)
    assert code == 1
    assert "can't be written: No space left on device" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert "Iteration" not in out


def test_without_checkpoints_a_run_trains_and_validates_all_the_same(run, config, script, sessions):
    code, out, err = run(
        "fit", "--config", config, *PROJECT, "--trainer.enable_checkpointing=false"
    )
    assert (code, validated(out)) == (0, [5, 10, 15, 20, 23]), err
    assert "Model saved" not in out
    assert "To go on" not in out
    assert not (sessions()[0] / "checkpoints").exists()
    assert script.written == []


def test_without_a_validation_set_the_end_of_the_run_is_kept(run, config, script):
    code, _, err = run("fit", "--config", config, *PROJECT, "--trainer.limit_val_batches=0")
    assert (code, script.written[-1:]) == (0, [23]), err


@pytest.mark.parametrize("schedule", ["none", "cosine", "plateau"])
def test_checkpoints_load_with_weights_only_and_carry_the_settings(run, config, sessions, schedule):
    flags = (f"--model.schedule={schedule}", "--trainer.max_steps=7")
    assert run("fit", "--config", config, *flags)[0] == 0
    settings = yaml.safe_load((sessions()[0] / "config.yaml").read_text())
    for name in ("best", "last"):
        file = sessions()[0] / "checkpoints" / f"{name}.ckpt"
        checkpoint = torch.load(file, weights_only=True)
        assert layer_state(checkpoint)["settings"] == settings


def test_the_place_of_the_best_model_is_told_at_each_new_best(
    run, config, script, sessions, meanwhile
):
    script.scores = {5: 0.25, 10: 0.125, 15: 0.5}
    _, out, _ = run("fit", "--config", config, *PROJECT, "--trainer.max_steps=15")
    told = re.findall(r"^(?:New best score .*|Model saved to): (.*)$", out, flags=re.MULTILINE)
    best = f"{sessions()[0]}/checkpoints/best.ckpt"
    assert told == ["-inf -> 0.250", best, "0.250 -> 0.500", best]


@pytest.mark.parametrize("flags", [(), ("--trainer.limit_val_batches=0",)])
def test_a_run_that_ends_before_its_last_iteration_is_saved(
    run, config, sessions, flags, meanwhile
):
    # A validation that is due every 5 iterations is not reached in the one that stops the run.
    stop = "{class_path: test_saving.StopAtSeven}"
    code, _, err = run("fit", "--config", config, f"--trainer.callbacks=[{stop}]", *flags)
    assert code == 0, err
    assert torch.load(sessions()[0] / "checkpoints/last.ckpt")["global_step"] == 7


class StopAtSeven(pl.Callback):
    def on_train_batch_end(self, trainer, *args) -> None:
        trainer.should_stop |= trainer.global_step == 7


def test_where_there_are_no_links_and_no_room_for_a_copy_best_is_kept_and_last_written_later(
    run, config, sessions, script, monkeypatch
):
    def refuse(source, target) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "give_second_name", refuse)
    script.scores = {23: 0.75}
    code, out, err = run("fit", "--config", config, *PROJECT)
    assert code == 0, err
    folder = sessions()[0] / "checkpoints"
    assert err.startswith(f"error: {folder}/last.ckpt can't be written: No space left on device.")
    assert f"Model saved to: {folder}/best.ckpt" in out
    assert [torch.load(folder / name)["global_step"] for name in ("best.ckpt", "last.ckpt")] == [
        23,
        23,
    ]


# Training goes on meanwhile --------------------------------------------------------------------


class Gate(pl.Callback):
    """Opens at iteration 8."""

    opened = threading.Event()

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == 8:
            self.opened.set()


GATE = "--trainer.callbacks=test_saving.Gate"


@pytest.mark.long
@pytest.mark.parametrize("meanwhile", [True], indirect=True)
@pytest.mark.parametrize("schedule", ["none", "plateau"])
def test_what_is_written_meanwhile_is_what_was_when_it_began(
    run, config, sessions, monkeypatch, meanwhile, schedule
):
    flags = (f"--model.schedule={schedule}", "--trainer.max_steps=9")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "goes_on_meanwhile", lambda trainer: False)
        assert run("fit", "--config", config, *flags)[0] == 0
    save, waited = torch.save, []
    Gate.opened.clear()

    def save_late(checkpoint, *args) -> None:
        if checkpoint["global_step"] == 5:
            waited.append(Gate.opened.wait(60))
        save(checkpoint, *args)

    monkeypatch.setattr(torch, "save", save_late)
    assert run("fit", "--config", config, *flags, GATE)[0] == 0
    assert waited == [True]  # training has come to iteration 8 before that of 5 was written
    waited_for, late = sessions()
    assert same(result(late), result(waited_for))
    best = [torch.load(session / "checkpoints/best.ckpt") for session in (waited_for, late)]
    for checkpoint in best:
        for key in ("callbacks", KEY):
            checkpoint.pop(key, None)
    assert same(*best)


@pytest.mark.parametrize("meanwhile", [True], indirect=True)
def test_a_best_that_could_not_be_written_meanwhile_is_not_the_best(
    run, config, script, sessions, full_disk, meanwhile
):
    script.scores = {5: 0.25, 10: 0.75, 15: 0.5, 20: 0.125, 23: 0.125}
    full_disk.add(10)
    code, out, err = run("fit", "--config", config, *PROJECT)
    assert code == 0, err
    folder = sessions()[0] / "checkpoints"
    assert err.count("error: ") == 1
    assert err.startswith(f"error: {folder}/best.ckpt can't be written: No space left on device")
    assert "last.ckpt is still that of iteration 5\n" in err
    best, last = torch.load(folder / "best.ckpt"), torch.load(folder / "last.ckpt")
    assert (best["global_step"], last["global_step"]) == (15, 23)
    assert last["lightning_trainer"]["best"]["score"] == 0.5
    assert "New best score (points, higher is better): 0.250 -> 0.500" in out


@pytest.mark.parametrize("meanwhile", [True], indirect=True)
def test_killed_while_one_is_written_meanwhile_the_one_before_is_there(
    run, config, sessions, monkeypatch, meanwhile
):
    assert run("fit", "--config", config)[0] == 0
    save = torch.save
    Gate.opened.clear()

    def save_half(checkpoint, file) -> None:
        if checkpoint["global_step"] == 10:
            Gate.opened.wait(60)
            file.write(b"half of it")
            raise Killed
        save(checkpoint, file)

    monkeypatch.setattr(Gate, "on_train_batch_end", open_and_die_at_12)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_half)
        with pytest.raises(Killed):
            run("fit", "--config", config, GATE)
    [_, session] = sessions()
    folder = session / "checkpoints"
    assert [torch.load(f)["global_step"] for f in sorted(folder.glob("last.ckpt"))] == [5]
    assert run("fit", "--ckpt_path", session, "--trainer.callbacks=null")[0] == 0
    assert same(result(session), result(sessions()[0]))


def open_and_die_at_12(self, trainer, *args) -> None:
    if trainer.global_step == 12:
        Gate.opened.set()
        raise Killed


class TeacherModule(TinyModule):
    """Changes a buffer in the module's own hooks, which Lightning calls after the callbacks'."""

    def create_model(self) -> None:
        super().create_model()
        self.register_buffer("teacher", torch.zeros(8, 4))

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        self.teacher.lerp_(self.model[0].weight.detach(), 0.1)

    def on_validation_end(self) -> None:
        self.teacher.add_(1)


@pytest.mark.long
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end"])
def test_what_a_module_does_at_the_end_of_a_batch_or_validation_is_saved(
    run, config, sessions, monkeypatch, tmp_path, hook
):
    with monkeypatch.context() as patch:
        copy_at(patch, hook, (5, 10), tmp_path / "killed")
        flags = ("--model=test_saving.TeacherModule", "--save_minutes=0")
        assert run("fit", "--config", config, *flags, "--trainer.max_steps=12")[0] == 0
    for n in (5, 10):
        code, _, err = run("fit", "--ckpt_path", tmp_path / "killed" / str(n))
        assert code == 0, err
        assert same(result(tmp_path / "killed" / str(n)), result(sessions()[0]))
