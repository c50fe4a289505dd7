"""A small GPT that writes a text letter by letter: Python's own reference, which Python ships.

Shows a vocabulary that comes from the data, perplexity, tokens/s, and samples of its text.

python cli.py fit --config configs/chargpt.yaml
"""

from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.text import Perplexity

from lightning_trainer import BaseDataModule, BaseModule


class Windows(torch.utils.data.Dataset):
    """All windows of so many letters, one every `step` letters, and the letter behind each."""

    def __init__(self, codes: Tensor, length: int, step: int) -> None:
        self.windows = codes.unfold(0, length + 1, step)  # a view, (N, length + 1)

    def __len__(self) -> int:
        return len(self.windows)

    def get_batch(self, indices: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        return {"tokens": self.windows[indices]}


class TextData(BaseDataModule):
    """About 465,000 letters, the last tenth of them for validation.

    Args:
        length: Letters that the model sees at a time.
    """

    def __init__(self, length: int = 64, **kwargs) -> None:
        super().__init__(**kwargs)
        self.length = length

    def create_data(self) -> None:
        text = "\n".join(topics.values())
        self.vocabulary = sorted(set(text))
        code = {letter: i for i, letter in enumerate(self.vocabulary)}
        codes = torch.tensor([code[letter] for letter in text])
        train, val = codes.split([len(codes) - len(codes) // 10, len(codes) // 10])
        self.train_dataset = Windows(train, self.length, step=1)
        self.val_dataset = Windows(val, self.length, step=self.length)
        self.test_dataset = self.predict_dataset = self.val_dataset


class Gpt(nn.Module):
    """Logits (B, T, K) of the next letter from the codes (B, T) of those so far."""

    def __init__(self, n_tokens: int, length: int, width: int, n_layers: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(n_tokens, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            *(width, width // 32, 4 * width), 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, n_layers, nn.LayerNorm(width), False)
        self.head = nn.Linear(width, n_tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        x = self.token(tokens) + self.place.weight[:n]
        return self.head(self.layers(x, self.mask[:n, :n], is_causal=True))

    def write(self, tokens: Tensor, n_letters: int) -> Tensor:
        """The codes (B, T) and so many more, each drawn by its probability."""
        for _ in range(n_letters):
            logits = self(tokens[:, -len(self.mask) :])[:, -1]
            tokens = torch.cat([tokens, logits.softmax(1).multinomial(1)], dim=1)
        return tokens


class GptModule(BaseModule):
    examples_unit = "tokens"

    def __init__(
        self, width: int = 96, n_layers: int = 3, learning_rate: float = 3e-3, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()

    def create_model(self) -> None:
        data, hp = self.trainer.datamodule, self.hparams
        self.model = Gpt(len(data.vocabulary), data.length, hp.width, hp.n_layers)

    def create_loss(self) -> None:
        self.loss_fn = nn.CrossEntropyLoss()

    def create_optimiser(self) -> None:
        lr, n_iterations = self.hparams.learning_rate, self.trainer.estimated_stepping_batches
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr, weight_decay=0.1)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimiser, lr, n_iterations)

    def create_metrics(self) -> None:
        self.train_metrics = MetricCollection({"perplexity": Perplexity()})
        self.val_metrics = self.train_metrics.clone()

    def forward_model(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch["tokens"][:, :-1])

    def forward_loss(self, batch: dict[str, Tensor], output: Tensor) -> Tensor:
        return self.loss_fn(output.flatten(0, 1), batch["tokens"][:, 1:].flatten())

    def update_metrics(self, metrics, batch: dict[str, Tensor], output: Tensor) -> None:
        metrics.update(output, batch["tokens"][:, 1:])

    def count_examples(self, batch: dict[str, Tensor]) -> int:
        return batch["tokens"][:, 1:].numel()

    def visualise(self, batch: dict[str, Tensor], output: Tensor, mode: str) -> None:
        codes = self.model.write(batch["tokens"][:1, :16], 300)[0].tolist()
        text = "".join(self.trainer.datamodule.vocabulary[code] for code in codes)
        self.tensorboard.add_text(f"{mode}/text", f"```\n{text}\n```", self.global_step)
