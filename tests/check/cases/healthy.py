"""Projects without a mistake that look as if they had one."""

import copy

import torch
import torch.nn.functional as F
from bases import (
    KINDS,
    N_TOKENS,
    Attention,
    CaseModule,
    PicturesData,
    Recurrent,
    Rows,
    TableData,
    Words,
    WordsData,
    case,
    dense,
)
from torch import nn
from torchmetrics import MeanMetric, MeanSquaredError, MetricCollection, R2Score
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy


def mean_metrics(self):
    self.train_metrics, self.val_metrics = MeanMetric(), MeanMetric()


def scored_by_loss(self, **kwargs):
    CaseModule.__init__(self, score_name="loss", **kwargs)


for plain in KINDS:
    case(plain)(type(f"plain_{plain}", (), {}))


@case("pictures")
class autoencoder:
    __init__, create_metrics = scored_by_loss, mean_metrics

    def create_model(self):
        self.model = nn.Sequential(dense(64, 32, 64), nn.Sigmoid())

    def forward_loss(self, batch, output):
        return F.mse_loss(output, batch["picture"].flatten(1))

    def update_metrics(self, metrics, batch, output):
        metrics.update((output - batch["picture"].flatten(1)).square().mean(1))


class WholeBatches(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.pictures = (rows.columns["picture"] * 255).byte()
        self.labels = rows.columns["label"]

    def __len__(self):
        return len(self.labels)

    def get_batch(self, indices, seeds):
        return {"picture": self.pictures[indices], "label": self.labels[indices]}


@case("pictures")
class bytes_normalised_in_the_model:
    def create_data(self):
        PicturesData.create_data(self)
        for mode in ("train", "val"):
            setattr(self, f"{mode}_dataset", WholeBatches(getattr(self, f"{mode}_dataset")))

    def forward_model(self, batch):
        return self.model((batch["picture"].float() - 80) / 95)


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.picture, self.code = dense(64, 32, 16), nn.Embedding(10, 16)

    def forward(self, pictures, labels):
        both = self.picture(pictures), self.code(labels)
        a, b = (F.normalize(each, dim=1) for each in both)
        return 5 * a @ b.T


@case("pictures")
class contrastive:
    create_metrics = mean_metrics

    def __init__(self, **kwargs):
        CaseModule.__init__(self, score_mode="max", **kwargs)

    def create_model(self):
        self.model = TwoTowers()

    def forward_model(self, batch):
        return self.model(batch["picture"], batch["label"])

    def forward_loss(self, batch, output):
        return F.cross_entropy(output, torch.arange(len(output)))

    def update_metrics(self, metrics, batch, output):
        labels = batch["label"]
        metrics.update((labels[output.argmax(1)] == labels).float())


@case("spots")
class dice_over_the_batch:
    def forward_loss(self, batch, output):
        p, mask = output.sigmoid(), batch["mask"]
        return 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = dense(65, 64, 64)

    def forward(self, pictures):
        x, t = 2 * pictures.flatten(1) - 1, torch.rand(len(pictures), 1)
        noise = torch.randn_like(x)
        noisy = (1 - t).sqrt() * x + t.sqrt() * noise
        return {"noise": noise, "guess": self.layers(torch.cat([noisy, t], 1))}


@case("pictures")
class diffusion:
    __init__, create_metrics = scored_by_loss, mean_metrics

    def create_model(self):
        self.model = Denoiser()

    def forward_loss(self, batch, output):
        return F.mse_loss(output["guess"], output["noise"])

    def update_metrics(self, metrics, batch, output):
        metrics.update((output["guess"] - output["noise"]).square().mean(1))


class Variational(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = dense(64, 32, 8), dense(4, 32, 64)

    def forward(self, pictures):
        mean, log_variance = self.encoder(pictures).chunk(2, 1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return {"logits": self.decoder(z), "mean": mean, "log_variance": log_variance}


@case("pictures")
class variational_autoencoder:
    __init__, create_metrics = scored_by_loss, mean_metrics

    def create_model(self):
        self.model = Variational()

    def forward_loss(self, batch, output):
        pixels, variance = batch["picture"].flatten(1), output["log_variance"].exp()
        error = F.binary_cross_entropy_with_logits(output["logits"], pixels, reduction="none")
        kl = 0.5 * (output["mean"].square() + variance - 1 - output["log_variance"])
        return {"reconstruction": error.sum(1).mean(), "kl": kl.sum(1).mean()}

    def update_metrics(self, metrics, batch, output):
        metrics.update((output["logits"].sigmoid() - batch["picture"].flatten(1)).square().mean(1))


class Categories(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(4, 4) for _ in range(3)])
        self.head = dense(12, 16, 2)

    def forward(self, x):
        parts = [layer(column) for layer, column in zip(self.embeddings, x.T, strict=True)]
        return self.head(torch.cat(parts, 1))


@case("table")
class few_categories:
    n_classes = 2
    create_loss, create_metrics = CaseModule.create_loss, CaseModule.create_metrics

    def columns(self):
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(0, 4, (900, 3), generator=generator)
        noise = torch.randn(900, generator=generator)
        return {"x": x, "y": (x[:, 0] - x[:, 1] + noise > 0).long()}

    def create_model(self):
        self.model = Categories()

    def forward_model(self, batch):
        return self.model(batch["x"])


@case("pictures")
class frozen_and_loaded:
    def create_model(self):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            body = nn.Sequential(dense(64, 32), nn.BatchNorm1d(32), nn.ReLU())
        body.requires_grad_(False).eval()
        self.model = nn.Sequential(body, nn.Linear(32, 10))

    def create_optimiser(self):
        self.optimiser = torch.optim.Adam(self.model[1].parameters(), 5e-3)


@case("table")
class likelihood_that_becomes_negative:
    def __init__(self, **kwargs):
        CaseModule.__init__(self, score_name="r2", **kwargs)

    def create_model(self):
        self.model = dense(6, 32, 2)

    def create_metrics(self):
        metrics = MetricCollection({"mse": MeanSquaredError(), "r2": R2Score()})
        self.train_metrics, self.val_metrics = metrics, metrics.clone()

    def columns(self):
        columns = TableData.columns(self)
        return {**columns, "y": 0.1 * columns["y"]}

    def forward_model(self, batch):
        return self.model(batch["x"])

    def forward_loss(self, batch, output):
        return F.gaussian_nll_loss(output[:, 0], batch["y"], output[:, 1].exp())

    def update_metrics(self, metrics, batch, output):
        metrics.update(output[:, 0], batch["y"])


@case("table")
class large_targets:
    def columns(self):
        columns = TableData.columns(self)
        return {**columns, "y": 300 + 50 * columns["y"]}


@case("pictures")
class log_probabilities_into_nll:
    def create_loss(self):
        self.loss_fn = nn.NLLLoss()

    def forward_model(self, batch):
        return self.model(batch["picture"]).log_softmax(1)


@case("table")
class rare_positives:
    def columns(self):
        columns = TableData.columns(self)
        return {**columns, "y": (columns["y"] > 1.7).float()}

    def create_loss(self):
        self.loss_fn = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(20.0))

    def create_metrics(self):
        self.train_metrics, self.val_metrics = BinaryAUROC(), BinaryAUROC()

    def update_metrics(self, metrics, batch, output):
        metrics.update(output, batch["y"].long())


class TeacherAndStudent(nn.Module):
    def __init__(self):
        super().__init__()
        self.student = dense(64, 32, 10)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, pictures):
        with torch.no_grad():
            if self.training:
                pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
                for slow, fast in pairs:
                    slow.lerp_(fast, 0.01)
            target = self.teacher(pictures)
        return torch.stack([self.student(pictures), target], 1)


@case("pictures")
class teacher_and_student:
    def create_model(self):
        self.model = TeacherAndStudent()

    def create_optimiser(self):
        self.optimiser = torch.optim.Adam(self.model.student.parameters(), 5e-3)

    def forward_loss(self, batch, output):
        student, teacher = output.unbind(1)
        apart = (student.softmax(1) - teacher.softmax(1)).square().sum(1).mean()
        return F.cross_entropy(student, batch["label"]) + 0.1 * apart

    def update_metrics(self, metrics, batch, output):
        metrics.update(output[:, 0], batch["label"])


@case("pictures", val_check_interval=1)
class thirty_samples:
    def columns(self):
        return {name: values[:190] for name, values in PicturesData.columns(self).items()}


@case("words")
class tied_weights_and_a_cosine:
    def create_model(self):
        self.model = Recurrent()
        self.model.head.weight = self.model.embedding.weight

    def create_optimiser(self):
        Words.create_optimiser(self)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimiser, self.trainer.max_steps
        )


class MaskedWords(Rows):
    """Hides words at random, also in validation."""

    def __getitem__(self, index):
        tokens = super().__getitem__(index)["tokens"]
        hidden = torch.rand(len(tokens)) < 0.3
        hidden[0] |= not hidden.any()
        return {
            "tokens": tokens.masked_fill(hidden, N_TOKENS - 1),
            "target": tokens.masked_fill(~hidden, -100),
        }


@case("words")
class masked_words:
    def create_data(self):
        WordsData.create_data(self)
        for mode in ("train", "val"):
            columns = getattr(self, f"{mode}_dataset").columns
            setattr(self, f"{mode}_dataset", MaskedWords(tokens=columns["tokens"] % (N_TOKENS - 1)))

    def create_model(self):
        self.model = Attention(causal=False)

    def create_metrics(self):
        accuracy = MulticlassAccuracy(N_TOKENS, average="micro", ignore_index=-100)
        self.train_metrics, self.val_metrics = accuracy, accuracy.clone()


class Adversary(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.critic = dense(4, 16, 6), dense(6, 16, 1)


@case("table")
class two_optimisers:
    __init__, create_metrics = scored_by_loss, mean_metrics

    def create_model(self):
        self.model = Adversary()

    def create_optimiser(self):
        parts = {"generator": self.model.generator, "critic": self.model.critic}
        self.optimiser = {k: torch.optim.Adam(m.parameters(), 2e-3) for k, m in parts.items()}

    def training_step(self, batch, batch_idx):
        made = self.model.generator(torch.randn(len(batch["x"]), 4))
        critic = F.softplus(self.model.critic(made.detach())).mean()
        critic = critic + F.softplus(-self.model.critic(batch["x"])).mean()
        self.optimise("critic", critic)
        generator = F.softplus(-self.model.critic(made)).mean()
        self.optimise("generator", generator)
        return {"generator": generator, "critic": critic}

    def forward_model(self, batch):
        return self.model.critic(batch["x"]).squeeze(1)

    def forward_loss(self, batch, output):
        return F.softplus(-output).mean()

    def update_metrics(self, metrics, batch, output):
        metrics.update(output)


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows[i] for i in range(len(self.rows)))


@case("pictures", val_check_interval=10)
class stream_of_pictures:
    def create_data(self):
        PicturesData.create_data(self)
        for mode in ("train", "val"):
            setattr(self, f"{mode}_dataset", Stream(getattr(self, f"{mode}_dataset")))
