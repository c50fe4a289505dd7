"""Each mistake is found by its name, and nothing in projects without one."""

import case_data  # noqa: F401
import case_model  # noqa: F401
import case_training  # noqa: F401
import case_unusual  # noqa: F401
import healthy  # noqa: F401
import lightning.pytorch as pl
import pytest
import unusual  # noqa: F401
from bases import CASES, Case

from lightning_trainer.check.catalogue import CHECKS
from lightning_trainer.check.findings import CheckReport
from lightning_trainer.check.inspection import inspect

FAULTY = [name for name, case in CASES.items() if case.expected]
HEALTHY = [name for name, case in CASES.items() if not case.expected]
TRAINING = ("learning", "relation")  # these take longest


def check(case: Case, names=tuple(CHECKS), seed: int = 0) -> CheckReport:
    pl.seed_everything(seed, verbose=False)
    settings = {"max_steps": 1000, "val_check_interval": 20, "check_val_every_n_epoch": None}
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{**settings, **case.settings},
    )
    return inspect(trainer, case.module(), case.data(), {name: CHECKS[name] for name in names})


def names_of(report: CheckReport) -> set[str]:
    return {finding.name for finding in report.findings}


def raised(report: CheckReport) -> list[str]:
    """What no check may do: raise anything but CannotCheck."""
    return [text for text in report.unable.values() if ".py:" in text]


@pytest.mark.parametrize("name", FAULTY)
def test_a_mistake_is_found_by_its_name(name):
    case = CASES[name]
    report = check(case, [case.expected.partition("/")[0]])
    assert case.expected in names_of(report), (report.findings, report.unable)
    assert not raised(report)


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_found_in_a_healthy_project(name):
    report = check(CASES[name], [check for check in CHECKS if check not in TRAINING])
    assert not report.findings
    assert not raised(report)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", HEALTHY)
def test_no_training_finds_anything_certain_in_a_healthy_project(name, seed):
    report = check(CASES[name], seed=seed)
    assert not report.certain
    assert not raised(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTY)
def test_all_checks_together_find_a_mistake(name):
    report = check(CASES[name])
    assert CASES[name].expected in names_of(report)
    assert not raised(report)


def test_each_check_has_a_mistake_that_it_finds():
    assert {CASES[name].expected.partition("/")[0] for name in FAULTY} == {*CHECKS}
