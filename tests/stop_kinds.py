"""The kinds of project, and the ways to count, whose runs are stopped at random places."""

import torch
from conftest import TinyData, TinyDataset, TinyModule
from torch import nn


class TeacherModule(TinyModule):
    """Its teacher follows at the end of each batch, and gives a part of the loss."""

    def create_model(self) -> None:
        super().create_model()
        self.teacher = nn.Linear(4, 2).requires_grad_(False)
        self.student = nn.Linear(4, 2)
        self.model.append(nn.Identity())

    def forward_model(self, batch):
        return self.model(batch["x"]) + self.student(batch["x"])

    def forward_loss(self, batch, output):
        distance = (self.student(batch["x"]) - self.teacher(batch["x"])).square().mean()
        return super().forward_loss(batch, output) + distance

    def create_optimiser(self) -> None:
        trained = [p for p in self.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, 1e-2)

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        with torch.no_grad():
            for slow, fast in zip(
                self.teacher.parameters(), self.student.parameters(), strict=True
            ):
                slow.lerp_(fast, 0.1)


class ManualModule(TinyModule):
    """Two optimisers that the project steps itself, both in one iteration."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False

    def configure_optimizers(self):
        first, *rest = self.model.children()
        others = [p for layer in rest for p in layer.parameters()]
        return [
            torch.optim.Adam(first.parameters(), 1e-2),
            torch.optim.SGD(others, 1e-2, momentum=0.9),
        ]

    def training_step(self, batch, batch_idx):
        step = super().training_step(batch, batch_idx)
        for optimiser in self.optimizers():
            optimiser.zero_grad()
        self.manual_backward(step["loss"])
        for optimiser in self.optimizers():
            optimiser.step()
        return {**step, "loss": step["loss"].detach()}


class WholeBatches(TinyDataset):
    """Makes a batch at once, with a draw for each sample and one for the batch."""

    def get_batch(self, indices, seeds):
        noise = torch.stack([_noise(seed) for seed in seeds.tolist()]) + torch.rand(())
        x = (indices % 2).float()[:, None] + 0.1 * noise
        return {"x": x, "label": indices % 2, "i": indices}


def _noise(seed: int) -> torch.Tensor:
    return torch.rand(4, generator=torch.Generator().manual_seed(seed))


class WholeBatchesData(TinyData):
    def create_data(self) -> None:
        self.train_dataset = WholeBatches(self.n_samples)
        self.val_dataset = self.test_dataset = WholeBatches(10)


class NoDropout(TinyModule):
    """For a compiler, which draws in its own way and takes long for more than a few layers."""

    def create_model(self) -> None:
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def of(name: str, **options: object) -> list[str]:
    return [f"--model={name}", *(f"--model.{k}={v}" for k, v in options.items())]


CALLBACK = "--trainer.callbacks"
KINDS: dict[str, list[str]] = {
    "tiny": of("conftest.TinyModule", schedule="plateau"),
    "accumulation": ["--trainer.accumulate_grad_batches=3"],
    "teacher in a hook": of("stop_kinds.TeacherModule"),
    "AverageWeights": [f"{CALLBACK}=lightning_trainer.AverageWeights", f"{CALLBACK}.decay=0.8"],
    "BackboneFinetuning": [
        *of("test_trainable.FineTuned"),
        f"{CALLBACK}=lightning.pytorch.callbacks.BackboneFinetuning",
        f"{CALLBACK}.unfreeze_backbone_at_epoch=1",
    ],
    "nested metrics": of("test_carried.WrappedModule", kind="minmax"),
    "draws in hooks": [*of("test_seeding.DrawingModule"), f"{CALLBACK}=test_seeding.Draws"],
    "two optimisers": of("stop_kinds.ManualModule"),
    "several optimisers": [
        *of("test_optimising.Adversaries", rates="steps"),
        "--trainer.gradient_clip_val=0.5",
    ],
    "several sets, parts of the loss": [
        *of("test_losses.Parts", schedule="plateau"),
        "--data=test_several_sets.SeveralData",
    ],
    "get_batch": ["--data=stop_kinds.WholeBatchesData"],
    "2 workers": ["--data.n_workers=2"],
}

_EPOCHS = ["--trainer.max_steps=-1", "--trainer.max_epochs=3"]
_VALIDATED = [*_EPOCHS, "--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=1.0"]
COUNTINGS: dict[str, list[str]] = {
    "iterations": ["--trainer.max_steps=20"],
    "epochs": _EPOCHS,
    "validated by epochs": _VALIDATED,
    "by fractions": [*_VALIDATED, "--trainer.val_check_interval=0.4"],
    "every 2 epochs": [*_VALIDATED, "--trainer.check_val_every_n_epoch=2"],
    "limit_train_batches": [*_EPOCHS, "--trainer.limit_train_batches=5"],
    "reloaded": [*_EPOCHS, "--trainer.reload_dataloaders_every_n_epochs=1"],
}

_PLUGIN = "--trainer.plugins"
PRECISIONS: dict[str, list[str]] = {
    "32-true": [],
    "bf16-mixed": ["--trainer.precision=bf16-mixed"],
    # Lightning's own option means bfloat16 on a CPU.
    "16-mixed": [
        f"{_PLUGIN}=lightning.pytorch.plugins.MixedPrecision",
        f"{_PLUGIN}.precision=16-mixed",
        f"{_PLUGIN}.device=cpu",
    ],
    "compiled": of("stop_kinds.NoDropout", compile="true"),
}
