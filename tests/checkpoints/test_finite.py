"""A loss that is no number is noticed, never saved, and ends the run or is skipped."""

import re

import pytest
import torch
from conftest import TinyModule
from restarts import result, same


@pytest.fixture
def spoil(monkeypatch):
    """Makes the loss of the given iterations NaN, and with it all weights after them."""
    original = TinyModule.forward_loss
    spoilt: set[int] = set()

    def forward_loss(self, batch, output):
        loss = original(self, batch, output)
        return loss * torch.nan if self.training and self.global_step + 1 in spoilt else loss

    monkeypatch.setattr(TinyModule, "forward_loss", forward_loss)
    return spoilt


def last(session) -> dict:
    return torch.load(session / "checkpoints/last.ckpt")


def is_finite(checkpoint: dict) -> bool:
    return all(t.isfinite().all() for t in checkpoint["state_dict"].values())


# Lines are at 4, 8, ..., validations at 5, 10, ....
@pytest.mark.parametrize(
    ("flags", "spoilt", "noticed", "good"),
    [
        ((), 6, 8, 5),
        ((), 9, 10, 5),
        (("--save_minutes=0",), 6, 6, 5),
        (("--trainer.log_every_n_steps=0", "--trainer.limit_val_batches=0"), 6, 23, 0),
    ],
    ids=["at a line", "before a validation", "before saving", "at the end"],
)
def test_it_ends_the_run_and_last_is_that_of_before(
    run, config, sessions, spoil, flags, spoilt, noticed, good
):
    spoil.add(spoilt)
    code, out, err = run("fit", "--config", config, *flags)
    assert code == 1
    path = sessions()[0] / "checkpoints/last.ckpt"
    assert re.fullmatch(
        rf"error: the loss is (nan|not finite) at iteration {noticed}. The last good checkpoint is "
        rf"{path} \(iteration {good}\). Try a lower learning rate, .* names the operation that "
        "fails",
        err.splitlines()[-1],
    )
    assert last(sessions()[0])["global_step"] == good
    assert is_finite(last(sessions()[0]))
    assert f"Stopped at iteration {noticed}\n" in out


def test_weights_that_are_lost_without_a_lost_loss_are_not_saved(
    run, config, sessions, monkeypatch
):
    step = torch.optim.Adam.step

    def overflow(self, closure=None):
        loss = step(self, closure)
        if any(state["step"] == 6 for state in self.state.values()):
            with torch.no_grad():
                self.param_groups[0]["params"][0][0, 0] = torch.inf
        return loss

    monkeypatch.setattr(torch.optim.Adam, "step", overflow)
    code, _, err = run("fit", "--config", config, "--save_minutes=0")
    assert code == 1
    assert "error: a weight is not finite at iteration 6" in err
    assert last(sessions()[0])["global_step"] == 5


def test_told_to_skip_it_goes_back_and_on_with_the_next_batches(run, config, sessions, spoil):
    spoil.add(6)
    code, out, err = run("fit", "--config", config, "--on_non_finite=skip")
    assert code == 0, err
    assert (
        "The loss is nan at iteration 8: weights and optimiser go back to iteration 5, the batches "
        "since then are skipped (1 of 3 times)\n" in out
    )
    checkpoint = last(sessions()[0])
    assert (checkpoint["global_step"], is_finite(checkpoint)) == (23, True)
    # The optimiser has seen 8 - 5 batches fewer.
    assert checkpoint["optimizer_states"][0]["state"][0]["step"] == 20


def test_what_follows_a_skip_depends_on_the_weights_gone_back_to_alone(
    run, config, sessions, spoil
):
    spoil.update({6, 7})
    assert run("fit", "--config", config, "--on_non_finite=skip")[0] == 0
    spoil.clear()
    spoil.add(8)
    assert run("fit", "--config", config, "--on_non_finite=skip")[0] == 0
    weights = [result(session)["weights"] for session in sessions()]
    assert same(*weights)


def test_skipping_keeps_the_learning_rate_of_the_schedule(run, config, sessions, spoil):
    flags = ("--model.schedule=cosine", "--on_non_finite=skip")
    assert run("fit", "--config", config, *flags)[0] == 0
    spoil.add(6)
    assert run("fit", "--config", config, *flags)[0] == 0
    rates = [
        last(session)["optimizer_states"][0]["param_groups"][0]["lr"] for session in sessions()
    ]
    assert rates[0] == rates[1]


# The checkpoints that are written right after going back are no sign that it helped.
@pytest.mark.parametrize(
    ("flags", "noticed", "kept"),
    [
        ((), 9, 5),
        (("--trainer.log_every_n_steps=0",), 25, 20),
        (("--trainer.log_every_n_steps=0", "--save_minutes=0"), 9, 8),
    ],
    ids=["at lines", "before validations", "before saving"],
)
def test_it_does_not_skip_for_ever(run, config, sessions, spoil, flags, noticed, kept):
    spoil.update(range(6, 101))
    flags = ("--trainer.log_every_n_steps=1", "--trainer.max_steps=100", *flags)
    code, out, err = run("fit", "--config", config, "--on_non_finite=skip", *flags)
    assert code == 1
    assert re.findall(r"\((\d) of 3 times\)", out) == ["1", "2", "3"]
    assert re.search(rf"error: the loss is .* at iteration {noticed}. The last good check", err)
    checkpoint = last(sessions()[0])
    assert (checkpoint["global_step"], is_finite(checkpoint)) == (kept, True)


def test_without_checkpoints_there_is_nothing_to_go_back_to(run, config, spoil):
    spoil.add(6)
    flags = ("--on_non_finite=skip", "--trainer.enable_checkpointing=false")
    code, _, err = run("fit", "--config", config, *flags)
    assert code == 1
    assert "error: the loss is nan at iteration 8. There is no checkpoint. Try" in err
