"""Healthy projects of unusual kinds: each would be a false alarm of a check that is too simple."""

import torch
import torch.nn.functional as F
from bases import N_TOKENS, CaseModule, PicturesData, Rows, TableData, WordsData, case, dense
from healthy import mean_metrics, scored_by_loss
from torch import nn
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy


class Graphs(list):
    """Graphs of 5 to 11 nodes; a batch is one graph of all their nodes."""

    @staticmethod
    def collate_fn(graphs):
        n = torch.tensor([len(graph["x"]) for graph in graphs])
        starts = (n.cumsum(0) - n).tolist()
        edges = [graph["edges"] + start for graph, start in zip(graphs, starts, strict=True)]
        return {
            "x": torch.cat([graph["x"] for graph in graphs]),
            "edges": torch.cat(edges, 1),
            "graph": torch.repeat_interleave(torch.arange(len(n)), n),
            "y": torch.stack([graph["y"] for graph in graphs]),
        }


def make_graph(generator):
    n = int(torch.randint(5, 12, (), generator=generator))
    x = torch.randn(n, 4, generator=generator)
    edges = torch.randint(0, n, (2, 3 * n), generator=generator)
    received = torch.zeros(n, 4).index_add(0, edges[1], x[edges[0]])
    return {"x": x, "edges": edges, "y": (received[:, 0] * x[:, 1]).sum() / n}


class GraphNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 16), nn.Linear(32, 16), nn.Linear(16, 1)

    def forward(self, batch, centre=False):
        x = batch["x"]
        for layer in (self.first, self.second):
            sent = torch.zeros_like(x).index_add(0, batch["edges"][1], x[batch["edges"][0]])
            x = layer(torch.cat([x, sent], 1)).relu()
        pooled = torch.zeros(len(batch["y"]), 16).index_add(0, batch["graph"], x)
        return self.head(pooled - pooled.mean(0) if centre else pooled).squeeze(1)


@case("table")
class graph_network:
    def create_data(self):
        generator = torch.Generator().manual_seed(0)
        graphs = [make_graph(generator) for _ in range(300)]
        self.train_dataset, self.val_dataset = Graphs(graphs[:240]), Graphs(graphs[240:])

    def create_model(self):
        self.model = GraphNetwork()

    def forward_model(self, batch):
        return self.model(batch)

    def count_examples(self, batch):
        return len(batch["y"])


@case("pictures")
class two_tasks_one_of_them_rarely_known:
    def columns(self):
        columns = PicturesData.columns(self)
        ink = 5 * columns["picture"].mean((1, 2, 3))
        ink[::3] = torch.nan
        return {**columns, "ink": ink}

    def create_model(self):
        heads = {"label": nn.Linear(32, 10), "ink": nn.Linear(32, 1)}
        self.model = nn.ModuleDict({"body": nn.Sequential(dense(64, 32), nn.ReLU()), **heads})

    def forward_model(self, batch):
        hidden = self.model["body"](batch["picture"])
        return {"label": self.model["label"](hidden), "ink": self.model["ink"](hidden).squeeze(1)}

    def forward_loss(self, batch, output):
        known = ~batch["ink"].isnan()
        return {
            "label": F.cross_entropy(output["label"], batch["label"]),
            "ink": F.mse_loss(output["ink"][known], batch["ink"][known]),
        }

    def update_metrics(self, metrics, batch, output):
        metrics.update(output["label"], batch["label"])


@case("table")
class missing_features_are_marked:
    def columns(self):
        columns = TableData.columns(self)
        missing = torch.rand(900, 6, generator=torch.Generator().manual_seed(8)) < 0.1
        columns["x"][missing] = torch.nan
        return columns

    def create_model(self):
        self.model = dense(12, 32, 1)

    def forward_model(self, batch):
        x = batch["x"]
        return self.model(torch.cat([x.nan_to_num(0), x.isnan().float()], 1)).squeeze(1)


@case("table")
class forces_are_derivatives_of_an_energy:
    def columns(self):
        x = TableData.columns(self)["x"]
        return {"x": x, "force": -torch.cat([x[:, :3], x[:, 3:].sin()], 1)}

    def create_model(self):
        self.model = dense(6, 32, 1, activation=nn.Tanh)

    def forward_model(self, batch):
        with torch.enable_grad():
            x = batch["x"].detach().requires_grad_()
            energy = self.model(x).sum()
            return -torch.autograd.grad(energy, x, create_graph=self.training)[0]

    def forward_loss(self, batch, output):
        return F.mse_loss(output, batch["force"])

    def update_metrics(self, metrics, batch, output):
        metrics.update(output.detach(), batch["force"])


@case("table")
class samples_of_a_generator:
    __init__, create_metrics = scored_by_loss, mean_metrics

    def create_model(self):
        self.model = dense(4, 32, 6)

    def forward_model(self, batch):
        return self.model(torch.randn(len(batch["x"]), 4))

    def forward_loss(self, batch, output):
        def near(a, b):
            return (-torch.cdist(a, b).square() / 6).exp().mean()

        x = batch["x"]
        return near(output, output) + near(x, x) - 2 * near(output, x)

    def update_metrics(self, metrics, batch, output):
        metrics.update(self.forward_loss(batch, output))


@case("table")
class pairs_are_ranked:
    create_metrics = mean_metrics

    def __init__(self, **kwargs):
        CaseModule.__init__(self, score_mode="max", **kwargs)

    def create_model(self):
        self.model = dense(6, 32, 1)

    def forward_model(self, batch):
        return self.model(batch["x"])  # (B, 1)

    def forward_loss(self, batch, output):
        higher = (batch["y"][:, None] > batch["y"]).float()
        return F.binary_cross_entropy_with_logits(output - output.T, higher)

    def update_metrics(self, metrics, batch, output):
        right = (output - output.T > 0) == (batch["y"][:, None] > batch["y"])
        metrics.update(right.float())


@case("pictures")
class one_of_the_sets_is_of_the_training_data:
    def create_data(self):
        PicturesData.create_data(self)
        part = {name: values[:100] for name, values in self.train_dataset.columns.items()}
        self.val_dataset = {"train_part": Rows(**part), "held_out": self.val_dataset}


@case("pictures")
class one_of_the_sets_is_brighter:
    def create_data(self):
        PicturesData.create_data(self)
        columns = dict(self.val_dataset.columns)
        columns["picture"] = 4 * columns["picture"] + 1
        self.val_dataset = {"plain": self.val_dataset, "bright": Rows(**columns)}


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(64, 8)
        self.experts = nn.ModuleList([dense(64, 16, 10) for _ in range(8)])

    def forward(self, pictures):
        x = pictures.flatten(1)
        weight, which = self.gate(x).softmax(1).max(1)
        output = torch.zeros(len(x), 10)
        for i in which.unique().tolist():
            output[which == i] = self.experts[i](x[which == i]) * weight[which == i, None]
        return output


@case("pictures")
class mixture_of_experts:
    def create_model(self):
        self.model = Experts()


@case("pictures")
class parametrised_layers:
    def create_model(self):
        with_norm = nn.utils.parametrizations.spectral_norm(nn.Linear(64, 32))
        self.model = nn.Sequential(nn.Flatten(), with_norm, nn.ReLU(), nn.Linear(32, 10))


class TagsData(torch.utils.data.Dataset):
    """Sentences of 4 to 10 words, padded by 0; most words have the tag 0."""

    def __init__(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(1, N_TOKENS, (n, 10), generator=generator)
        for row, length in enumerate(torch.randint(4, 11, (n,), generator=generator).tolist()):
            self.tokens[row, length:] = 0

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        tokens = self.tokens[index]
        return {"tokens": tokens, "tag": (tokens % 3 == 1).long()}


@case("words")
class tags_of_words:
    def create_data(self):
        self.train_dataset, self.val_dataset = TagsData(500, 0), TagsData(150, 1)

    def create_model(self):
        embedding = nn.Embedding(N_TOKENS, 16, padding_idx=0)
        self.model = nn.Sequential(embedding, nn.Linear(16, 2))

    def forward_loss(self, batch, output):
        return F.cross_entropy(output.flatten(0, 1), batch["tag"].flatten())

    def create_metrics(self):
        accuracy = MulticlassAccuracy(2, average="micro")
        self.train_metrics, self.val_metrics = accuracy, accuracy.clone()

    def update_metrics(self, metrics, batch, output):
        metrics.update(output.flatten(0, 1), batch["tag"].flatten())


@case("words")
class constant_mask_beside_the_tokens:
    """Nothing is padded, so that the mask is the same in all samples."""

    def columns(self):
        columns = WordsData.columns(self)
        return {**columns, "mask": torch.ones_like(columns["tokens"])}

    def forward_model(self, batch):
        return self.model(batch["tokens"]) * batch["mask"][..., None]


@case("pictures")
class people_of_validation_are_others:
    """Embeddings are compared: the classes of validation are not those of training."""

    def create_data(self):
        columns = self.columns()
        known = columns["label"] < 6
        for mode, part in (("train", known), ("val", ~known)):
            rows = {name: values[part] for name, values in columns.items()}
            setattr(self, f"{mode}_dataset", Rows(**rows))

    def create_model(self):
        self.model = dense(64, 32, 16)

    def forward_model(self, batch):
        return F.normalize(self.model(batch["picture"]), dim=1)

    def forward_loss(self, batch, output):
        distance = torch.cdist(output, output)
        same = batch["label"][:, None] == batch["label"]
        hardest = (distance * same).max(1).values - (distance + 10 * same).min(1).values
        return F.relu(hardest + 0.3).mean()

    def create_metrics(self):
        self.train_metrics, self.val_metrics = BinaryAccuracy(), BinaryAccuracy()

    def update_metrics(self, metrics, batch, output):
        distance = torch.cdist(output, output) + 10 * torch.eye(len(output))
        right = batch["label"][distance.argmin(1)] == batch["label"]
        metrics.update(right.float(), torch.ones(len(right)).long())
