"""Small healthy projects of four kinds; a case changes one of them in one place."""

from abc import abstractmethod
from collections.abc import Callable
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics import MeanSquaredError
from torchmetrics.classification import BinaryJaccardIndex, MulticlassAccuracy

from lightning_trainer import BaseDataModule, BaseModule

N_TOKENS, LENGTH = 12, 10


class Rows(Dataset):
    """Dicts of the i-th of each tensor, after a transform of the sample."""

    def __init__(self, transform: Callable | None = None, **columns: Tensor) -> None:
        self.columns, self.transform = columns, transform

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = {name: values[index] for name, values in self.columns.items()}
        return self.transform(sample) if self.transform else sample


def dense(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


class CaseData(BaseDataModule):
    """Splits the columns that a kind of project makes."""

    n_val = 160

    def __init__(self, batch_size: int = 32, n_workers: int = 0) -> None:
        super().__init__(batch_size, n_workers)

    @abstractmethod
    def columns(self) -> dict[str, Tensor]:
        """Of all samples, (N, ...) by key."""

    def create_data(self) -> None:
        columns = self.columns()
        n = len(next(iter(columns.values())))
        order = torch.randperm(n, generator=torch.Generator().manual_seed(3))
        parts = {"train": order[self.n_val :], "val": order[: self.n_val]}
        for mode, part in parts.items():
            rows = Rows(**{name: values[part] for name, values in columns.items()})
            setattr(self, f"{mode}_dataset", rows)


class CaseModule(BaseModule):
    """What most kinds have in common: Adam, and a cross-entropy with its accuracy."""

    n_classes = 10

    def __init__(self, learning_rate: float = 5e-3, **kwargs) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()

    def create_loss(self) -> None:
        self.loss_fn = nn.CrossEntropyLoss()

    def create_optimiser(self) -> None:
        self.optimiser = torch.optim.Adam(self.model.parameters(), self.hparams.learning_rate)

    def create_metrics(self) -> None:
        accuracy = MulticlassAccuracy(self.n_classes, average="micro", validate_args=False)
        self.train_metrics, self.val_metrics = accuracy, accuracy.clone()


class PicturesData(CaseData):
    """Handwritten digits, (1, 8, 8) in [0, 1]."""

    def columns(self) -> dict[str, Tensor]:
        digits = load_digits()
        pictures = torch.tensor(digits.images[:800, None] / 16, dtype=torch.float32)
        return {"picture": pictures, "label": torch.tensor(digits.target[:800])}


class Pictures(CaseModule):
    def create_model(self) -> None:
        self.model = dense(64, 32, 32, 10)

    def forward_model(self, batch):
        return self.model(batch["picture"])

    def forward_loss(self, batch, output):
        return self.loss_fn(output, batch["label"])


class TableData(CaseData):
    """Six standardised features, and a target of about unit variance."""

    def columns(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(900, 6, generator=generator)
        y = x[:, 0] - 0.7 * x[:, 1] * x[:, 2] + torch.sin(2 * x[:, 3])
        return {"x": x, "y": y / y.std()}


class Table(CaseModule):
    def create_model(self) -> None:
        self.model = dense(6, 32, 32, 1)

    def create_loss(self) -> None:
        self.loss_fn = nn.MSELoss()

    def create_metrics(self) -> None:
        self.train_metrics, self.val_metrics = MeanSquaredError(), MeanSquaredError()

    def forward_model(self, batch):
        return self.model(batch["x"]).squeeze(1)

    def forward_loss(self, batch, output):
        return self.loss_fn(output, batch["y"])

    def update_metrics(self, metrics, batch, output) -> None:
        metrics.update(output, batch["y"])


class WordsData(CaseData):
    """Tokens (T,) of a random walk through an alphabet, and the tokens that follow."""

    def columns(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(2)
        steps = torch.tensor([1, 1, 1, 5])[
            torch.randint(0, 4, (700, LENGTH + 1), generator=generator)
        ]
        start = torch.randint(0, N_TOKENS, (700, 1), generator=generator)
        walk = (start + steps.cumsum(1)) % N_TOKENS
        return {"tokens": walk[:, :-1], "target": walk[:, 1:]}


class Attention(nn.Module):
    """One layer of attention, which sees earlier places only if `causal`."""

    def __init__(self, causal: bool = True, batch_first: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N_TOKENS, 16)
        self.place = nn.Parameter(0.1 * torch.randn(LENGTH, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=batch_first)
        self.head, self.causal = nn.Linear(16, N_TOKENS), causal

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.place[: tokens.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.causal else None
        return self.head(self.layer(x, mask, is_causal=self.causal))


class Recurrent(nn.Module):
    def __init__(self, bidirectional: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N_TOKENS, 16)
        self.gru = nn.GRU(16, 16, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(32 if bidirectional else 16, N_TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.gru(self.embedding(tokens))[0])


class Words(CaseModule):
    n_classes = N_TOKENS

    def create_model(self) -> None:
        self.model = Attention()

    def forward_model(self, batch):
        return self.model(batch["tokens"])  # (B, T, K)

    def forward_loss(self, batch, output):
        return self.loss_fn(output.flatten(0, 1), batch["target"].flatten())

    def update_metrics(self, metrics, batch, output) -> None:
        metrics.update(output.flatten(0, 1), batch["target"].flatten())


class SpotsData(CaseData):
    """Noisy pictures (1, 8, 8) of a bright square, and its mask."""

    def columns(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(4)
        row, column = torch.randint(0, 5, (2, 500, 1, 1), generator=generator)
        rows, columns = torch.arange(8)[:, None], torch.arange(8)
        inside = (rows >= row) & (rows < row + 4) & (columns >= column) & (columns < column + 4)
        mask = inside.float()[:, None]
        noise = torch.randn(mask.shape, generator=generator)
        return {"picture": mask - 0.3 + 0.3 * noise, "mask": mask}


class Spots(CaseModule):
    def create_model(self) -> None:
        self.model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 1, 3, padding=1),
        )

    def create_loss(self) -> None:
        self.loss_fn = nn.BCEWithLogitsLoss()

    def create_metrics(self) -> None:
        self.train_metrics, self.val_metrics = BinaryJaccardIndex(), BinaryJaccardIndex()

    def forward_model(self, batch):
        return self.model(batch["picture"])

    def forward_loss(self, batch, output):
        return self.loss_fn(output, batch["mask"])

    def update_metrics(self, metrics, batch, output) -> None:
        metrics.update(output.sigmoid(), batch["mask"].long())


KINDS = {
    "pictures": (Pictures, PicturesData),
    "table": (Table, TableData),
    "words": (Words, WordsData),
    "spots": (Spots, SpotsData),
}


class Case:
    """A project and the finding that is expected; None for a healthy one.

    `module`, `data` are the classes of a kind, with the case's hooks in place of theirs.
    """

    def __init__(self, name: str, kind: str, expected: str | None, hooks: dict, settings: dict):
        module, data = KINDS[kind]
        of_data = ("columns", "create_data")
        self.name, self.expected, self.settings = name, expected, settings
        own = {key: hook for key, hook in hooks.items() if key not in of_data}
        self.module = type(module.__name__, (module,), own)
        own = {key: hook for key, hook in hooks.items() if key in of_data}
        self.data = type(data.__name__, (data,), own)


CASES: dict[str, Case] = {}


def case(kind: str, expected: str | None = None, **settings) -> Callable[[type], type]:
    """Makes a case of a class that has its hooks, e.g. `create_model`."""

    def add(hooks: type) -> type:
        own = {name: value for name, value in vars(hooks).items() if not name.startswith("__")}
        if "__init__" in vars(hooks):
            own["__init__"] = hooks.__init__
        CASES[hooks.__name__] = Case(hooks.__name__, kind, expected, own, settings)
        return hooks

    return add
