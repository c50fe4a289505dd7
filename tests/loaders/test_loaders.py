"""A restart with a loader of a project's own is exact, or what it lacks is told."""

import pytest
from kinds import FOLDER
from restarts import copy_at, result, same

from lightning_trainer.run.loaders import FollowedLoader

LIMITED = ("--trainer.limit_train_batches=5",)
OVERFIT = ("--trainer.overfit_batches=3",)
EPOCHS = ("--trainer.max_steps=-1", "--trainer.max_epochs=3")
STARTS_AGAIN = "has no `state_dict`, so it starts again from its beginning"
ANOTHER_BATCH = "gives another batch than was due"


@pytest.fixture
def restarts(run, config, sessions, monkeypatch, tmp_path):
    """Stops at batches and goes on; yields for each whether it is exact, and its warnings."""
    monkeypatch.setenv(FOLDER, str(tmp_path))

    def restarts_(kind: str, n_workers: int, stops, *flags: str):
        project = ("--model=kinds.TwoModule", "--data=kinds.Loaders", f"--data.kind={kind}")
        project += (f"--data.n_workers={n_workers}", "--save_minutes=0", *flags)
        with monkeypatch.context() as patch:
            copy_at(patch, "on_train_batch_end", stops, tmp_path / "stopped")
            code, _, err = run("fit", "--config", config, *project)
            assert code == 0, err
        for n in stops:
            session = tmp_path / "stopped" / str(n)
            code, _, err = run("fit", "--ckpt_path", session)
            assert code == 0, err
            results = result(session), result(sessions()[0])
            for each in results:
                del each["samples"]  # in some states there are numbers that mean nothing
            yield same(*results), [line for line in err.splitlines() if "not bitwise" in line], err

    return restarts_


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("plain", EPOCHS),
        ("plain with a generator", ()),
        ("own", LIMITED),
        ("two", ()),
        ("overfit", OVERFIT),
        pytest.param("plain", (), marks=pytest.mark.slow),
        pytest.param("own", (), marks=pytest.mark.slow),
        pytest.param("own with a length", (), marks=pytest.mark.slow),
        pytest.param("own with a length", LIMITED, marks=pytest.mark.slow),
        pytest.param("list", (), marks=pytest.mark.slow),
    ],
)
def test_it_is_exact_without_a_warning(restarts, kind, flags):
    assert [found[:2] for found in restarts(kind, 0, (7, 11), *flags)] == [(True, [])] * 2


def test_what_has_no_state_is_read_again_from_the_start_of_the_epoch(restarts):
    [(_, _, err), (_, _, at_the_end)] = restarts("plain", 0, (11, 14))
    assert "Reading 4 batches of `DataLoader` again\n" in err
    assert "Reading" not in at_the_end


def test_a_stream_without_a_state_is_told(restarts):
    [(exact, [warning], _)] = restarts("plain stream", 0, (5,))
    assert not exact
    assert f"`DataLoader` {STARTS_AGAIN}" in warning


def test_the_layers_own_loader_is_not_followed(run, config, monkeypatch):
    monkeypatch.delattr(FollowedLoader, "begin")
    assert run("fit", "--config", config, "--trainer.max_steps=1")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize(
    ("package", "kind", "told"),
    [
        ("torchdata", "stateful", (None, ANOTHER_BATCH)),
        ("torchdata", "stateful quiet", (None, None)),
        ("torchdata", "stateful persistent", (None, None)),
        ("torchdata", "stateful stream", (None, ANOTHER_BATCH)),
        ("torchdata", "stateful quiet stream", (None, None)),
        ("torchdata", "stateful finite stream", (None, None)),
        ("torchdata", "stateful stream without a state", (None, None)),
        ("datasets", "hugging face map", (None, None)),
        ("datasets", "hugging face", (None, None)),
        ("datasets", "hugging face with a buffer", (ANOTHER_BATCH, ANOTHER_BATCH)),
        ("litdata", "litdata", (None, None)),
        ("webdataset", "webdataset", (STARTS_AGAIN, STARTS_AGAIN)),
        ("webdataset", "webdataset with a length", (None, None)),
    ],
)
def test_loaders_of_other_packages(restarts, package, kind, told, n_workers):
    pytest.importorskip(package)
    pytest.importorskip("torchdata")
    if n_workers and "buffer" in kind:
        pytest.skip("datasets 5.2 can't load its own state")
    reason = told[n_workers // 2]
    for exact, warnings, _ in restarts(kind, n_workers, (5, 11)):
        assert exact == (reason is None)
        assert [reason in warning for warning in warnings] == ([] if exact else [True])
