"""What a validation and a test print, and which validation is the best."""

import re

import pytest
import scripted
import torch
from scripted import PROJECT, training_log, validated

from lightning_trainer.run.state import rule

RULE = rule()

NAN = float("nan")


@pytest.fixture
def script(monkeypatch):
    return scripted.start(monkeypatch)


def new_bests(out: str) -> list[str]:
    return re.findall(r"^New best score \(.* is better\): (.*)$", out, flags=re.MULTILINE)


def test_a_validation_prints_its_loss_scores_and_other_metrics(run, config, script, sessions):
    script.scores = {5: 0.25, 8: 0.125}
    flags = ("--model.extra_metrics=true", "--model.score_name=points", "--trainer.max_steps=8")
    code, out, err = run(
        "fit", "--config", config, *PROJECT, *flags, "--trainer.log_every_n_steps=9"
    )
    assert code == 0, err
    # The train score is over batches 1 to 5, whose scores are 1 to 5, then over 6 to 8.
    assert (
        training_log(out)
        == f"""\
{RULE}
Validation
{RULE}
Val loss: 0.6250
{RULE}
Metrics
{RULE}
Train score: 3.000
Val score (points, higher is better): 0.250
Train another: 4.000
Train twice: 6.000
Val another: 1.250
Val twice: 0.500
New best score (points, higher is better): -inf -> 0.250
Model saved to: {sessions()[0]}/checkpoints/best.ckpt

{RULE}
{RULE}
Validation
{RULE}
Val loss: 1.0000
{RULE}
Metrics
{RULE}
Train score: 7.000
Val score (points, higher is better): 0.125
Train another: 8.000
Train twice: 14.000
Val another: 1.125
Val twice: 0.250

{RULE}
"""
    )


@pytest.mark.parametrize(
    ("mode", "scores", "expected", "best"),
    [
        ("max", [0.25, 0.5, 0.375], ["-inf -> 0.250", "0.250 -> 0.500"], 2),
        ("min", [0.25, 0.5, 0.125], ["inf -> 0.250", "0.250 -> 0.125"], 3),
        ("max", [NAN, 0.25, 0.5], ["-inf -> 0.250", "0.250 -> 0.500"], 3),
        ("min", [NAN, 0.25, 0.5], ["inf -> 0.250"], 2),
        ("max", [0.25, NAN, 0.125], ["-inf -> 0.250"], 1),
        ("min", [0.25, NAN, 0.5], ["inf -> 0.250"], 1),
        ("max", [NAN, NAN, NAN], [], None),
        ("max", [0.25, 0.25, 0.25], ["-inf -> 0.250"], 1),
        ("min", [0.25, 0.25, 0.25], ["inf -> 0.250"], 1),
        ("max", [-0.5, -0.25, -0.5], ["-inf -> -0.500", "-0.500 -> -0.250"], 2),
    ],
)
def test_the_best_is_the_first_of_the_best_scores_and_never_nan(
    run, config, script, sessions, mode, scores, expected, best
):
    script.scores = dict(enumerate(scores, 1))
    flags = (f"--model.score_mode={mode}", "--trainer.max_steps=3")
    code, out, err = run(
        "fit", "--config", config, *PROJECT, *flags, "--trainer.val_check_interval=1"
    )
    assert code == 0, err
    assert validated(out) == [1, 2, 3]
    assert new_bests(out) == expected
    checkpoint = sessions()[0] / "checkpoints" / "best.ckpt"
    if best is None:
        assert not checkpoint.exists()
        assert "Best score:    none yet\n" in out
    else:
        assert torch.load(checkpoint)["global_step"] == best
        assert f"Best score:    {scores[best - 1]:.4f} at iteration {best}\n" in out


def test_the_validation_loss_can_be_the_score(run, config, script, sessions):
    flags = ("--model.score_name=loss", "--trainer.max_steps=10")
    code, out, err = run(
        "fit", "--config", config, *PROJECT, *flags, "--trainer.log_every_n_steps=99"
    )
    assert code == 0, err
    assert training_log(out).splitlines()[3:11] == [
        "Val loss: 0.6250",
        RULE,
        "Metrics",
        RULE,
        "Val score (loss, lower is better): 0.625",
        "Train points: 3.000",
        "Val points: 0.500",
        "New best score (loss, lower is better): inf -> 0.625",
    ]
    assert new_bests(out) == ["inf -> 0.625"]


def test_the_best_score_survives_a_restart(run, config, script, sessions):
    script.scores = {5: 0.75, 10: 0.5, 15: 0.625, 20: 0.875}
    flags = ("--trainer.max_steps=10",)
    assert run("fit", "--config", config, *PROJECT, *flags)[0] == 0
    code, out, err = run("fit", "--ckpt_path", sessions()[0], "--trainer.max_steps=20")
    assert code == 0, err
    assert validated(out) == [15, 20]
    assert new_bests(out) == ["0.750 -> 0.875"]
    best = torch.load(sessions()[0] / "checkpoints" / "best.ckpt")
    assert best["global_step"] == 20


def test_the_best_score_survives_a_move_of_the_folder(run, config, script, sessions, tmp_path):
    script.scores = {5: 0.75, 10: 0.5, 15: 0.625}
    assert run("fit", "--config", config, *PROJECT, "--trainer.max_steps=10")[0] == 0
    moved = sessions()[0].rename(tmp_path / "elsewhere")
    code, out, err = run("fit", "--ckpt_path", moved, "--trainer.max_steps=15")
    assert (code, new_bests(out)) == (0, []), err
    assert torch.load(moved / "checkpoints" / "best.ckpt")["global_step"] == 5


def test_the_train_score_is_over_all_batches_since_the_last_validation(run, config, script):
    flags = ("--trainer.max_steps=5", "--trainer.val_check_interval=2", "--model.vis_iterations=0")
    code, out, err = run(
        "fit", "--config", config, *PROJECT, *flags, "--trainer.accumulate_grad_batches=2"
    )
    assert code == 0, err
    # Batches 1 to 4, 5 to 8 across the end of an epoch, and 9 to 10, in pairs within each epoch.
    assert re.findall(r"^Train score: (.*)$", out, re.MULTILINE) == ["2.500", "6.500", "9.500"]


def test_a_test_prints_a_block_and_logs_it_at_the_iteration_of_the_weights(
    run, config, script, sessions
):
    script.scores = {5: 0.25, 10: 0.125}
    flags = ("--model.extra_metrics=true", "--model.score_name=points", "--trainer.max_steps=10")
    assert run("fit", "--config", config, *PROJECT, *flags)[0] == 0
    session = sessions()[0]
    code, out, err = run("test", "--ckpt_path", session)
    assert code == 0, err
    assert (
        out
        == f"""\
Session: {session}
Checkpoint: {session}/checkpoints/best.ckpt (iteration 5)
{RULE}
Test
{RULE}
Test loss: 0.6250
Test score (points, higher is better): 0.250
Test another: 1.250
Test twice: 0.500
{RULE}
"""
    )
    names, *rows = (session / "metrics.csv").read_text().splitlines()
    table = [dict(zip(names.split(","), row.split(","), strict=True)) for row in rows]
    tested = [(row["step"], row["test/points"]) for row in table if row.get("test/points")]
    assert tested == [("5", "0.25")]


def test_a_validation_alone_prints_its_block_and_writes_nothing(run, config, script, sessions):
    assert run("fit", "--config", config, *PROJECT, "--trainer.max_steps=10")[0] == 0
    session = sessions()[0]
    before = {path: path.read_bytes() for path in session.rglob("*.c*")}
    code, out, err = run("validate", "--ckpt_path", session)
    assert code == 0, err
    assert (
        out
        == f"""\
Session: {session}
Checkpoint: {session}/checkpoints/best.ckpt (iteration 5)
{RULE}
Validation
{RULE}
Val loss: 0.6250
{RULE}
Metrics
{RULE}
Val score (points, higher is better): 0.500
"""
    )
    assert {path: path.read_bytes() for path in session.rglob("*.c*")} == before
