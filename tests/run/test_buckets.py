"""Three or more processes add up gradients in one order, from the first step on."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from conftest import TinyModule
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_trainer.checkpoints.inexact import WarnOfInexactRestart
from lightning_trainer.run.buckets import SettleBuckets
from lightning_trainer.run.state import RunState
from lightning_trainer.session.folder import Session


@pytest.fixture
def trainer():
    """trainer(module, **options): as much of it as the callbacks look at, with 3 processes."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def make(module: nn.Module, **options: bool) -> SimpleNamespace:
        ddp = DistributedDataParallel(module, gradient_as_bucket_view=True, **options)
        strategy = SimpleNamespace(model=ddp, root_device=torch.device("cpu"))
        loader = SimpleNamespace(load_state_dict=None)
        return SimpleNamespace(
            world_size=3, is_global_zero=True, strategy=strategy, train_dataloader=loader
        )

    yield make
    dist.destroy_process_group()


def changes_after_first_step(trainer: SimpleNamespace) -> bool:
    ddp = trainer.strategy.model
    x = torch.tensor([[0, 1], [2, 0]]) if isinstance(ddp.module, nn.Embedding) else torch.ones(2, 4)
    ddp(x).sum().backward()
    return bool(ddp.reducer._rebuild_buckets())


def test_buckets_are_settled_before_the_first_step_without_a_trace(trainer):
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    three, before = trainer(module), {k: v.clone() for k, v in module.state_dict().items()}
    kept = module[0].weight.grad = torch.ones(8, 4)
    SettleBuckets(RunState(Session())).on_train_start(three)
    assert module[0].weight.grad is kept
    assert [p.grad for p in module.parameters()][1:] == [None] * 5
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert "forward" not in vars(module)
    module[0].weight.grad = None
    assert not changes_after_first_step(three)


@pytest.mark.parametrize(
    ("module", "options", "told"),
    [
        (nn.Linear(4, 2), {"find_unused_parameters": True}, False),
        (nn.Linear(4, 2), {"static_graph": True}, True),
        (nn.Embedding(4, 2, sparse=True), {}, True),
    ],
    ids=["has one order", "static graph", "sparse"],
)
def test_where_they_can_not_be_settled_it_is_told(trainer, capsys, module, options, told):
    three, run = trainer(module, **options), RunState(Session())
    run.goes_on, run.n_processes_before = True, 3
    SettleBuckets(run).on_train_start(three)
    WarnOfInexactRestart(run).on_train_start(three, TinyModule())
    assert ("DDP adds up the first step's gradients" in capsys.readouterr().err) is told
    assert told or not changes_after_first_step(three)
