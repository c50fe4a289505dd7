"""The trail tells two runs apart where a bit differs, and only there."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import TinyModule
from lightning.pytorch.callbacks import Callback
from restarts import Killed, kill_at
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from lightning_trainer.verify.trail import RecordTrail, digest, leaves, sample_digests

RECORD = "--trainer.callbacks+=lightning_trainer.verify.trail.RecordTrail"
FLAGS = (RECORD, "--trainer.max_steps=7", "--save_minutes=0")


def read(session: Path) -> list[dict]:
    """All whole lines, without the time."""
    lines = session.joinpath("trail_rank0.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines if line.endswith("}")]
    return [{k: v for k, v in entry.items() if k != "time_s"} for entry in entries]


def events(lines: list[dict]) -> list[tuple]:
    return [(line["event"], line["iteration"]) for line in lines]


def batches(first: int, last: int) -> list[tuple]:
    return [("batch", i) for i in range(first, last + 1)]


class ChangesItsBatch(TinyModule):
    def forward_model(self, batch):
        batch["x"].mul_(2)
        return super().forward_model(batch)


class Other(Callback):
    """Stands for a callback of the user's config file."""


def test_starts_batches_and_validations_are_in_the_order_in_which_they_happened(
    run, config, sessions
):
    assert run("fit", "--config", config, *FLAGS)[0] == 0
    lines = read(sessions()[0])
    middle, end = ([*[("validating", i)] * 3, ("validated", i)] for i in (5, 7))
    assert events(lines) == [("start", 0), *batches(1, 5), *middle, *batches(6, 7), *end]
    numbers = [line["batch"] for line in lines if "batch" in line]
    assert numbers == [1, 2, 3, 4, 5, *[1, 2, 3], 6, 7, *[1, 2, 3]]
    assert lines[-1]["scores"].keys() == {"val/accuracy", "val/loss"}


def test_the_weights_are_those_after_the_iteration(run, config, sessions):
    assert run("fit", "--config", config, *FLAGS)[0] == 0
    *_, last = (line for line in read(sessions()[0]) if line["event"] == "batch")
    checkpoint = torch.load(sessions()[0] / "checkpoints/last.ckpt")
    assert last["weights"] == {k: digest(v) for k, v in checkpoint["state_dict"].items()}


def test_accumulated_batches_have_a_line_each(run, config, sessions):
    flags = ("--trainer.accumulate_grad_batches=2", "--trainer.max_steps=2")
    assert run("fit", "--config", config, *FLAGS, *flags)[0] == 0
    lines = [line for line in read(sessions()[0]) if line["event"] == "batch"]
    numbers = [(line["iteration"], line["batch"]) for line in lines]
    assert numbers == [(1, 1), (1, 2), (2, 3), (2, 4)]
    a, b, c, _ = (line["weights"]["model.0.weight"] for line in lines)
    assert a != b == c


def test_a_killed_run_adds_equal_lines_after_half_a_line(run, config, sessions, monkeypatch):
    assert run("fit", "--config", config, *FLAGS)[0] == 0
    kill_at(monkeypatch, "on_validation_start", lambda trainer: trainer.global_step == 5)
    with pytest.raises(Killed):
        run("fit", "--config", config, *FLAGS)
    with sessions()[1].joinpath("trail_rank0.jsonl").open("a") as file:
        file.write('{"event": "val')
    assert run("fit", "--ckpt_path", sessions()[1])[0] == 0
    reference, lines = read(sessions()[0]), read(sessions()[1])
    assert lines.pop(lines.index({"event": "start", "iteration": 5}))
    assert lines == reference


def test_samples_are_those_of_the_loader_whatever_the_module_does_to_them(run, config, sessions):
    assert run("fit", "--config", config, *FLAGS)[0] == 0
    assert run("fit", "--config", config, *FLAGS, f"--model={__name__}.ChangesItsBatch")[0] == 0
    a, b = (read(session)[1] for session in sessions())
    assert a["samples"] == b["samples"]
    assert a["loss"] != b["loss"]


def test_the_option_adds_it_to_the_callbacks_of_a_config_file(run, config, sessions, tmp_path):
    for i, callbacks in enumerate((f"[{__name__}.Other]", f"{{class_path: {__name__}.Other}}")):
        more = tmp_path / "more.yaml"
        more.write_text(f"trainer:\n  callbacks: {callbacks}\n")
        code, _, err = run("fit", *FLAGS, "--config", config, "--config", more)
        assert code == 0, err
        stored = sessions()[i].joinpath("config.yaml").read_text()
        assert f"{__name__}.Other" in stored
        assert events(read(sessions()[i]))[0] == ("start", 0)


def test_a_sample_has_a_digest_of_its_own():
    image = torch.arange(12.0).reshape(3, 4)
    batch = {"image": image, "name": ["a", "b", "c"], "pair": (torch.zeros(3), torch.ones(3))}
    changed = {**batch, "image": image.clone()}
    changed["image"][1, 2] += 1e-6
    renamed = {**batch, "name": ["a", "b", "d"]}
    digests, others, renames = map(sample_digests, (batch, changed, renamed))
    assert len(set(digests)) == 3
    assert [a == b for a, b in zip(digests, others, strict=True)] == [True, False, True]
    assert [a == b for a, b in zip(digests, renames, strict=True)] == [True, True, False]


def test_what_is_not_by_sample_is_part_of_each():
    image = torch.zeros(3, 4)
    a, b = (sample_digests({"image": image, "scale": torch.tensor(s)}) for s in (1.0, 2.0))
    assert not set(a) & set(b)
    assert len(sample_digests({"text": "no tensor at all"})) == 1


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(2), -torch.zeros(2)),
        (torch.zeros(2), torch.zeros(1, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.ones(2).bfloat16(), torch.full((2,), 1.0078125).bfloat16()),
        (torch.eye(2).to_sparse(), 2 * torch.eye(2).to_sparse()),
        (torch.tensor(True), torch.tensor(False)),
        (0.1 + 0.2, 0.3),
        (1, 1.0),
    ],
)
def test_a_digest_differs_with_any_bit(a, b):
    assert digest(a) != digest(b)
    assert len(digest(a)) == 16


def test_a_digest_is_the_same_for_the_same_bits():
    assert digest(torch.full((2,), torch.nan)) == digest(torch.full((2,), torch.nan))
    assert digest(torch.arange(6).reshape(2, 3).T) == digest(torch.tensor([[0, 3], [1, 4], [2, 5]]))
    assert digest(object()) == digest(object())  # whose addresses differ


def test_a_digest_of_a_sharded_tensor_is_that_of_the_part_of_this_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded = distribute_tensor(torch.arange(6.0), mesh, [Shard(0)])
        assert digest(sharded) == digest(torch.arange(6.0))
    finally:
        dist.destroy_process_group()


def test_leaves_are_named_by_their_way():
    nested = {"a": {0: [1.0, 2.0], "b": [torch.ones(1), {"c": None}]}, "empty": {}}
    names = [name for name, _ in leaves(nested)]
    assert names == ["a.0", "a.b.0", "a.b.1.c", "empty"]


def test_it_writes_nothing_in_the_sanity_check_and_in_a_test(run, config, sessions):
    assert run("fit", "--config", config, *FLAGS)[0] == 0
    before = read(sessions()[0])
    assert run("test", "--ckpt_path", sessions()[0])[0] == 0
    assert read(sessions()[0]) == before
    assert before[0] == {"event": "start", "iteration": 0}


def test_it_keeps_nothing_in_a_checkpoint():
    assert RecordTrail().state_dict() == {}
