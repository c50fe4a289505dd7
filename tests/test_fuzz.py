"""Whatever a user mistypes ends in one message, and what ends well has been done.

FUZZ_CASES=1000 pytest tests/test_fuzz.py
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

N_CASES = int(os.environ.get("FUZZ_CASES", 25))
LIMITS = settings(
    max_examples=N_CASES,
    deadline=None,
    derandomize=N_CASES < 100,  # the same cases in each run of the tests
    suppress_health_check=list(HealthCheck),
)

# Keys of which a wrong value must not come to more than a short run.
KEYS = [
    "tag",
    "output_path",
    "seed_everything",
    "save_minutes",
    "on_non_finite",
    "fast_loop",
    "matmul_precision",
    "model",
    "data",
    "trainer",
    "model.class_path",
    "model.init_args",
    "model.init_args.learning_rate",
    "model.init_args.score_name",
    "model.init_args.score_mode",
    "model.init_args.vis_iterations",
    "model.init_args.schedule",
    "model.init_args.fused",
    "data.class_path",
    "data.init_args",
    "data.init_args.n_samples",
    "data.init_args.batch_size",
    "trainer.accelerator",
    "trainer.precision",
    "trainer.log_every_n_steps",
    "trainer.val_check_interval",
    "trainer.check_val_every_n_epoch",
    "trainer.limit_val_batches",
    "trainer.limit_train_batches",
    "trainer.gradient_clip_val",
    "trainer.accumulate_grad_batches",
    "trainer.deterministic",
    "trainer.benchmark",
    "trainer.callbacks",
    "trainer.logger",
    "trainer.plugins",
    "trainer.strategy",
    "trainer.num_nodes",
    "trainer.num_sanity_val_steps",
    "trainer.reload_dataloaders_every_n_epochs",
    "trainer.profiler",
    "trainer.enable_checkpointing",
    "trainer.overfit_batches",
    "trainer.default_root_dir",
]
VALUES = st.one_of(
    st.sampled_from([None, "", "abc", "../x", "a b/c", "a" * 300, "os.system", "conftest.Tiny"]),
    st.sampled_from([-1, 0, 1, 2.5, -0.5, float("nan"), float("inf"), True, False]),
    st.sampled_from([[], {}, [1], {"a": 1}, [None], {"class_path": "x.Y"}]),
    st.text(max_size=8),
)


def put(config: dict[str, Any], key: str, value: Any) -> None:
    """Sets `a.b.c`, where all above it is a group."""
    *groups, name = key.split(".")
    for group in groups:
        config = config.setdefault(group, {}) if isinstance(config, dict) else {}
    if isinstance(config, dict):
        config[name] = value


def check(run, tmp_path: Path, *arguments: object) -> None:
    """Runs it; a failure has one message, a success has a checkpoint of its last iteration."""
    made = set(tmp_path.rglob("session_*"))
    code, out, err = run(*arguments)
    told = f"exit code {code}\n{out}\n{err}"
    assert "Traceback" not in out + err, told
    if code:
        assert code in (1, 2), told
        messages = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(messages) == 1, told
        assert len(messages[0]) < 1500, told
        return
    [session] = set(tmp_path.rglob("session_*")) - made
    if "enable_checkpointing: false" not in (session / "config.yaml").read_text():
        assert torch.load(session / "checkpoints/last.ckpt")["global_step"] == 2, told


@pytest.fixture
def valid(config: Path, tmp_path: Path, monkeypatch) -> dict[str, Any]:
    """The tiny project for two iterations; relative paths lead nowhere else."""
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load(config.read_text())
    settings["trainer"] |= {"max_steps": 2, "val_check_interval": 1, "devices": 1}
    return settings


@pytest.mark.long
@LIMITS
@given(changes=st.lists(st.tuples(st.sampled_from(KEYS), VALUES), min_size=1, max_size=2))
def test_wrong_values_in_a_config(run, config, tmp_path, valid, changes):
    changed = yaml.safe_load(yaml.safe_dump(valid))
    for key, value in changes:
        put(changed, key, value)
    config.write_text(yaml.safe_dump(changed))
    check(run, tmp_path, "fit", "--config", config)


@pytest.mark.long
@LIMITS
@given(
    key=st.sampled_from(KEYS),
    position=st.integers(0, 40),
    letter=st.sampled_from("abcxyz_.-"),
    value=VALUES,
)
def test_misspelt_keys_and_odd_values_on_the_command_line(
    run, config, tmp_path, valid, key, position, letter, value
):
    config.write_text(yaml.safe_dump(valid))
    option = key.replace(".init_args", "")
    misspelt = option[:position] + letter + option[position + 1 :]
    check(run, tmp_path, "fit", "--config", config, f"--{misspelt}={value}")
    check(run, tmp_path, "fit", "--config", config, f"--{option}", value)


@LIMITS
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_files_that_are_no_config(run, config, tmp_path, valid, content):
    config.write_bytes(content)
    check(run, tmp_path, "fit", "--config", config)


@LIMITS
@given(
    words=st.lists(
        st.one_of(
            st.sampled_from(["fit", "test", "--ckpt_path", "--config", "--tag", "-c", "--", "x"]),
            st.text(max_size=5),
        ),
        max_size=4,
    ).filter(lambda words: not {"-h", "--help"} & {*words})
)
def test_command_lines_of_any_words(run, tmp_path, valid, words):
    check(run, tmp_path, *words)
