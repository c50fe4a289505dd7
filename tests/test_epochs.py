"""Runs that are measured in epochs go on bitwise, and each epoch is as long as asked for."""

import shutil

import pytest
import torch
from conftest import TinyData, TinyModule
from restarts import copy_at, result, same

# 7 batches an epoch, 21 iterations.
EPOCHS = ("--trainer.max_steps=-1", "--trainer.max_epochs=3", "--save_minutes=0")
BY_EPOCH = ("--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=1.0")

calls: list[tuple[str, int, int]] = []  # hook, epoch, iterations done
seen: list[list[int]] = []  # indices of each training batch


def flat(batches: list[list[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


class EpochModule(TinyModule):
    def create_optimiser(self) -> None:
        if self.trainer.max_steps < 0:  # makes the loaders before the checkpoint is read
            self.total = self.trainer.estimated_stepping_batches
        super().create_optimiser()

    def on_train_epoch_start(self) -> None:
        calls.append(("start", self.current_epoch, self.global_step))

    def on_train_batch_start(self, batch, batch_idx) -> None:
        seen.append(batch["i"].tolist())

    def on_train_epoch_end(self) -> None:
        calls.append(("end", self.current_epoch, self.global_step))


@pytest.fixture
def fit(run, config):
    def fit_(*flags: str) -> str:
        calls.clear()
        seen.clear()
        code, out, err = run("fit", *flags)
        assert code == 0, err
        return out

    model = "--model=test_epochs.EpochModule"
    return lambda *flags: fit_("--config", config, model, *flags), fit_


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "stops"),
    [
        ((), (1, 7, 8, 14)),  # validated every 5 iterations
        (BY_EPOCH, (7, 10, 21)),
        ((*BY_EPOCH, "--trainer.check_val_every_n_epoch=2"), (7, 14, 20)),
        ((*BY_EPOCH, "--trainer.val_check_interval=0.4"), (4, 7)),
        (("--trainer.accumulate_grad_batches=3",), (1, 3, 6)),
        (("--trainer.limit_train_batches=5",), (5, 9, 10)),
        (("--trainer.reload_dataloaders_every_n_epochs=2",), (7, 14)),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value[0], str) else None,
)
def test_stopped_anywhere_it_goes_on_bitwise_and_calls_the_same_hooks(
    fit, sessions, monkeypatch, tmp_path, flags, stops
):
    begin, go_on = fit
    with monkeypatch.context() as patch:
        copy_at(patch, "on_train_batch_end", stops, tmp_path / "stopped")
        begin(*EPOCHS, *flags)
    expected, all_calls = result(sessions()[0]), [*calls]
    for n in stops:
        session = tmp_path / "stopped" / str(n)
        go_on("--ckpt_path", str(session))
        assert same(result(session), expected), f"stopped after iteration {n}"
        left = [call for call in all_calls if call[2] > n or call[::2] == ("end", n)]
        # An epoch that ends at the stop is followed by the start of the next one.
        assert [call for call in calls if call[::2] != ("start", n)] == left


@pytest.mark.long
def test_stopped_within_the_validation_of_an_epochs_end_it_goes_on_bitwise(
    fit, sessions, monkeypatch, tmp_path
):
    begin, go_on = fit
    with monkeypatch.context() as patch:
        copy_at(patch, "on_validation_batch_end", (7, 14, 21), tmp_path / "stopped")
        begin(*EPOCHS, *BY_EPOCH)
    for n in (7, 14, 21):
        go_on("--ckpt_path", str(tmp_path / "stopped" / str(n)))
        assert same(result(tmp_path / "stopped" / str(n)), result(sessions()[0]))


def test_stopped_at_an_epochs_end_and_again_it_goes_on_bitwise(
    fit, sessions, monkeypatch, tmp_path
):
    begin, go_on = fit
    first, second = tmp_path / "first", tmp_path / "second"
    with monkeypatch.context() as patch:
        copy_at(patch, "on_train_batch_end", [7], first)
        begin(*EPOCHS)
    with monkeypatch.context() as patch:
        copy_at(patch, "on_train_batch_end", [9, 14], second)
        go_on("--ckpt_path", str(first / "7"))
    for n in (9, 14):
        go_on("--ckpt_path", str(second / str(n)))
        assert same(result(second / str(n)), result(sessions()[0]))


class SavesAtStart(EpochModule):
    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.trainer.save_checkpoint(f"{self.trainer.default_root_dir}/{self.current_epoch}.ckpt")


def test_what_a_hook_saves_at_the_start_of_an_epoch_goes_on_with_all_of_it(fit, sessions, tmp_path):
    begin, go_on = fit
    begin(*EPOCHS, "--model=test_epochs.SavesAtStart")
    expected, all_calls = result(sessions()[0]), [*calls]
    session = shutil.copytree(sessions()[0], tmp_path / "session")
    go_on("--ckpt_path", str(session / "1.ckpt"))
    assert same(result(session), expected)
    assert calls == all_calls[2:]


def test_more_epochs_go_on_as_one_longer_run(fit, sessions):
    begin, go_on = fit
    begin(*EPOCHS, *BY_EPOCH)
    begin(*EPOCHS, *BY_EPOCH, "--trainer.max_epochs=2")
    whole, half = sessions()
    assert "Finished at iteration 21\n" in go_on("--ckpt_path", str(half), "--trainer.max_epochs=3")
    assert same(result(half), result(whole))


@pytest.mark.parametrize("flags", [(), ("--trainer.reload_dataloaders_every_n_epochs=1",)])
def test_each_epoch_is_as_long_as_asked_for_and_has_its_own_order(fit, flags):
    fit[0](*EPOCHS, "--trainer.limit_train_batches=5", *flags)
    assert [call[2] for call in calls if call[0] == "end"] == [5, 10, 15]
    epochs = [flat(seen[i : i + 5]) for i in (0, 5, 10)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_with_another_batch_size_the_epochs_still_see_each_sample_once(
    fit, monkeypatch, tmp_path, capfd
):
    begin, go_on = fit
    with monkeypatch.context() as patch:
        copy_at(patch, "on_train_batch_end", [9], tmp_path)
        begin(*EPOCHS)
    before = flat(seen[:9])
    calls.clear()
    seen.clear()
    out = go_on("--ckpt_path", str(tmp_path / "9"), "--data.batch_size=6")
    samples = before + flat(seen)
    assert [sorted(samples[i : i + 26]) for i in (0, 26, 52)] == [list(range(26))] * 3
    assert "Iteration     16/17" in out  # 9, 3 of the 18 samples left in the epoch, and 5
    assert "Finished at iteration 17\n" in out


class GrowingData(TinyData):
    size = 26

    def create_data(self) -> None:
        self.n_samples = type(self).size
        super().create_data()


def test_other_data_are_told_with_both_numbers(fit, run, monkeypatch, tmp_path):
    begin, _ = fit
    data = "--data=test_epochs.GrowingData"
    with monkeypatch.context() as patch:
        copy_at(patch, "on_train_batch_end", [9], tmp_path)
        begin(*EPOCHS, data)
    monkeypatch.setattr(GrowingData, "size", 32)
    calls.clear()
    code, out, err = run("fit", "--ckpt_path", tmp_path / "9", "--data.batch_size=5")
    assert code == 0, err
    begins = "warning: this restart is not bitwise exact:"
    assert f"{begins} the training data has 32 samples instead of 26\n" in err
    assert f"{begins} a batch of all processes has 5 samples instead of 4\n" in err
    # 8 samples of the second epoch were used: 5 batches are left, and 7 follow.
    assert "Finished at iteration 21\n" in out


def test_the_iterations_of_a_run_follow_the_accumulation_of_each_epoch(fit):
    out = fit[0](
        *EPOCHS,
        "--trainer.callbacks=lightning.pytorch.callbacks.GradientAccumulationScheduler",
        "--trainer.callbacks.scheduling={0: 1, 1: 2}",
    )
    assert "Iteration      4/15 " in out
    assert "Finished at iteration 15\n" in out
    assert out.rindex("Val loss") > out.rindex("Iteration     12/15")


def test_a_checkpoint_has_the_epochs_that_are_done(fit, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        copy_at(patch, "on_train_batch_end", [7], tmp_path)
        fit[0](*EPOCHS)
    loops = torch.load(tmp_path / "7/checkpoints/last.ckpt")["loops"]["fit_loop"]
    assert loops["state_dict"]["combined_loader"][0]["samples"] == 26
