"""A project whose clock, losses, scores and weights follow a script, to be checked by hand."""

import re

import pytest
import torch
from restarts import Killed
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from lightning_trainer import BaseDataModule, BaseModule
from lightning_trainer.checkpoints.files import AtomicCheckpointIO
from lightning_trainer.run.state import RunState

PROJECT = ("--model=scripted.ScriptedModule", "--data=scripted.ScriptedData")


class Script:
    """What things cost in seconds, all exact in binary, and what the validations score.

    An iteration costs 0.5 s: 125 ms until its batch is there and 375 ms for the update. The three
    batches of a validation take 1.5 s and a checkpoint 2 s.
    """

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.fetch_s = 0.0625
        self.transfer_s = 0.0625
        self.forward_s = 0.25
        self.step_s = 0.125
        self.validation_batch_s = 0.5
        self.write_s = 2.0
        self.late_s: dict[int, float] = {}  # more for the update of these batches, from 1 on
        self.scores: dict[int, float] = {}  # by iteration; else 0.5
        self.die_at = 0  # in this iteration
        self.written: list[int] = []  # the iterations of the checkpoints

    def clock(self) -> float:
        return self.now_s


script = Script()


def training_log(out: str) -> str:
    """What was printed between the number of parameters and the summary."""
    return re.split(r"^(?:Parameters: .*|(?:Finished|Stopped) at .*)\n", out, flags=re.M)[1]


def validated(out: str) -> list[int]:
    """The iterations after which a validation ran."""
    return [round(float(loss) * 8) for loss in re.findall(r"^Val loss: (.*)$", out, re.M)]


def start(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Starts a new script, whose clock is that of all that measure time."""
    script.__init__()
    for module in (
        "report.first_guess",
        "report.progress",
        "run.device",
        "checkpoints.saving",
        "checkpoints.writing",
        "base.data",
    ):
        monkeypatch.setattr(f"lightning_trainer.{module}.perf_counter", script.clock)
    write = AtomicCheckpointIO.save_checkpoint

    def slow_write(self, checkpoint, path, *args, **kwargs) -> None:
        write(self, checkpoint, path, *args, **kwargs)
        script.now_s += script.write_s if checkpoint["global_step"] else 0.0
        script.written.append(checkpoint["global_step"])

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", slow_write)
    return script


class ScriptedDataset(torch.utils.data.Dataset):
    def __init__(self, n_samples: int, fetch: bool) -> None:
        self.n_samples = n_samples
        self.fetch = fetch

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": torch.ones(1)}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        script.now_s += script.fetch_s if self.fetch else 0.0
        return [self[i] for i in indices]


class ScriptedData(BaseDataModule):
    """6 training batches of 4 samples, 3 batches to evaluate."""

    def __init__(self, n_samples: int = 24) -> None:
        super().__init__(batch_size=4, n_workers=0)
        self.n_samples = n_samples

    def create_data(self) -> None:
        self.train_dataset = ScriptedDataset(self.n_samples, fetch=True)
        self.val_dataset = self.test_dataset = ScriptedDataset(10, fetch=False)

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        script.now_s += script.transfer_s if self.trainer.training else 0.0
        return batch


class OwnLoaderData(ScriptedData):
    """A project that makes its training loader itself."""

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(self.train_dataset, batch_size=4)


class SlowSGD(torch.optim.SGD):
    def step(self, closure=None):
        loss = super().step(closure)
        script.now_s += script.step_s
        return loss


class Points(MeanMetric):
    higher_is_better = True


class ScriptedModule(BaseModule):
    """One weight, which is -n/8 after n iterations.

    The loss and the score of the k-th training batch are k, the loss of a validation after n
    iterations is n/8, its score is that of the script.
    """

    def __init__(self, n_groups: int = 1, extra_metrics: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.n_groups = n_groups
        self.extra_metrics = extra_metrics

    def create_model(self) -> None:
        self.model = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(self.n_groups)])

    def create_loss(self) -> None:
        self.loss_fn = torch.sum

    def create_optimiser(self) -> None:
        groups = [{"params": [p], "lr": 0.125 / (i + 1)} for i, p in enumerate(self.model)]
        self.optimiser = SlowSGD(groups)

    def create_metrics(self) -> None:
        names = ["points", "twice", "another"] if self.extra_metrics else ["points"]
        mean = MetricCollection({n: Points(nan_strategy="disable") for n in names})
        self.train_metrics, self.val_metrics = mean, mean.clone()

    def forward_model(self, batch: dict[str, Tensor]) -> Tensor:
        if self.training:
            number = self.trainer.fit_loop.total_batch_idx + 1
            if self.global_step + 1 == script.die_at:
                raise Killed
            script.now_s += script.forward_s + script.late_s.get(number, 0.0)
            return torch.tensor(float(number))
        script.now_s += script.validation_batch_s
        return torch.tensor(script.scores.get(self.iteration, 0.5))

    def forward_loss(self, batch: dict[str, Tensor], output: Tensor) -> Tensor:
        nothing = sum((weight - weight.detach()).sum() for weight in self.model)
        return nothing + (output if self.training else torch.tensor(self.iteration / 8))

    def update_metrics(self, metrics: MetricCollection, batch: dict, output: Tensor) -> None:
        metrics["points"].update(output)
        if self.extra_metrics:
            metrics["twice"].update(2 * output)
            metrics["another"].update(output + 1)

    @property
    def iteration(self) -> int:
        if self.trainer.state.fn == "fit":
            return self.global_step
        return RunState.of(self.trainer, self).restored_iteration
