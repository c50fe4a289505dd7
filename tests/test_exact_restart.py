"""A run that is killed and goes on gives bitwise what an uninterrupted one gives."""

import csv
from pathlib import Path

import pytest
import torch

from lightning_trainer.callbacks import SaveCheckpoints


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it is saved."""


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def result(session: Path) -> dict:
    """What must be the same: weights, optimiser, scheduler, best score, and every logged number."""
    last, best = (torch.load(session / f"checkpoints/{n}.ckpt") for n in ("last", "best"))
    with (session / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    timeless = [
        {name: value for name, value in row.items() if not name.startswith("timing/")}
        for row in rows
    ]
    return {
        "weights": last["state_dict"],
        "optimiser": last["optimizer_states"],
        "scheduler": last["lr_schedulers"],
        "best": (best["global_step"], best["state_dict"]),
        "score": last["callbacks"]["ReportEvaluation"],
        "samples": last["loops"]["fit_loop"]["state_dict"]["combined_loader"],
        "numbers": timeless,
    }


def kill_at(monkeypatch: pytest.MonkeyPatch, hook: str, when) -> None:
    """Makes the run die where `when(trainer)` holds, after the hook has done its work."""
    original = getattr(SaveCheckpoints, hook)

    def dying(self, trainer, *args, **kwargs):
        original(self, trainer, *args, **kwargs)
        if when(trainer) and not trainer.sanity_checking:
            monkeypatch.setattr(SaveCheckpoints, hook, original)
            raise Killed

    monkeypatch.setattr(SaveCheckpoints, hook, dying)


@pytest.fixture(scope="module")
def references() -> dict:
    return {}


@pytest.mark.parametrize(
    "flags",
    [
        ("--save_minutes=0", "--model.schedule=cosine"),
        ("--save_minutes=0", "--trainer.accumulate_grad_batches=2", "--trainer.max_steps=13"),
        ("--save_minutes=10", "--model.schedule=plateau"),
    ],
    ids=["saved every iteration", "accumulating gradients", "saved at validations only"],
)
def test_killed_after_any_iteration_it_goes_on_bitwise(
    run, config, sessions, monkeypatch, references, flags
):
    assert run("fit", "--config", config, *flags)[0] == 0
    expected = result(sessions()[0])
    n_iterations = 13 if "--trainer.max_steps=13" in flags else 23
    for k in range(6 if "--save_minutes=10" in flags else 1, n_iterations):
        kill_at(monkeypatch, "on_train_batch_end", lambda trainer, k=k: trainer.global_step == k)
        with pytest.raises(Killed):
            run("fit", "--config", config, *flags)
        session = sessions()[-1]
        code, _, err = run("fit", "--ckpt_path", session)
        assert code == 0, err
        assert same(result(session), expected), f"killed after iteration {k}"
