"""Mistakes in projects of unusual kinds."""

import torch
import torch.nn.functional as F
from bases import Pictures, PicturesData, Rows, SpotsData, TableData, case, dense
from healthy import mean_metrics, scored_by_loss
from torch import nn
from unusual import graph_network, two_tasks_one_of_them_rarely_known


@case("table", "mixing/mixed")
class pooled_over_all_graphs:
    create_data, create_model = graph_network.create_data, graph_network.create_model
    count_examples = graph_network.count_examples

    def forward_model(self, batch):
        return self.model(batch, centre=True)


@case("pictures", "values/not_finite")
class unknown_targets_in_the_loss:
    columns = two_tasks_one_of_them_rarely_known.columns
    create_model = two_tasks_one_of_them_rarely_known.create_model
    forward_model = two_tasks_one_of_them_rarely_known.forward_model
    update_metrics = two_tasks_one_of_them_rarely_known.update_metrics

    def forward_loss(self, batch, output):
        ink = F.mse_loss(output["ink"], batch["ink"])
        return {"label": F.cross_entropy(output["label"], batch["label"]), "ink": ink}


@case("table", "metric/nan")
class unknown_targets_in_the_metric:
    def columns(self):
        columns = TableData.columns(self)
        columns["y"] = columns["y"].clone()
        columns["y"][::7] = torch.nan
        return columns

    def forward_loss(self, batch, output):
        known = ~batch["y"].isnan()
        return F.mse_loss(output[known], batch["y"][known])


@case("pictures", "unregistered/no_influence")
class second_head_is_not_in_the_loss:
    def create_model(self):
        self.model = nn.ModuleDict({"body": dense(64, 32), "a": nn.Linear(32, 10)})
        self.model["b"] = nn.Linear(32, 10)

    def forward_model(self, batch):
        hidden = self.model["body"](batch["picture"]).relu()
        return {name: self.model[name](hidden) for name in ("a", "b")}

    def forward_loss(self, batch, output):
        return F.cross_entropy(output["a"], batch["label"])

    def update_metrics(self, metrics, batch, output):
        metrics.update(output["a"], batch["label"])


@case("pictures", "scale/shift")
class second_set_is_not_scaled:
    def create_data(self):
        PicturesData.create_data(self)
        columns = dict(self.val_dataset.columns)
        columns["picture"] = 255 * columns["picture"]
        self.val_dataset = {"plain": self.val_dataset, "other": Rows(**columns)}


class Centres:
    """Where the square of a picture is, (2,), in [0, 1]."""

    def columns(self):
        columns = SpotsData.columns(self)
        places = torch.stack(torch.meshgrid(*2 * [torch.arange(8.0)], indexing="ij"))
        mask = columns["mask"]
        centre = (mask * places).sum((2, 3)) / mask.sum((2, 3)) / 7
        order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
        return {"picture": columns["picture"], "centre": centre[order]}


@case("spots", "relation/unrelated")
class centres_of_other_pictures:
    columns = Centres.columns

    def create_model(self):
        self.model = dense(64, 32, 2)

    def forward_loss(self, batch, output):
        return F.smooth_l1_loss(output, batch["centre"])

    create_metrics = mean_metrics
    __init__ = scored_by_loss

    def update_metrics(self, metrics, batch, output):
        metrics.update((output - batch["centre"]).square().mean(1))


class TwoNetworks:
    """Two optimisers, of which `training_step` says what each gets."""

    def create_model(self):
        self.model = nn.ModuleDict({"generator": dense(4, 16, 64), "critic": dense(64, 16, 1)})

    def create_optimiser(self):
        networks = self.model.items()
        self.optimiser = {k: torch.optim.Adam(m.parameters(), 5e-4) for k, m in networks}

    def forward_model(self, batch):
        return self.model["generator"](torch.randn(len(batch["picture"]), 4))

    def forward_loss(self, batch, output):
        return F.softplus(-self.model["critic"](output)).mean()

    def update_metrics(self, metrics, batch, output):
        metrics.update(output.mean(1))


def losses(self, batch, made):
    """Of the critic, which gets no gradient into the generator, and of the generator."""
    critic = self.model["critic"]
    real = F.softplus(-critic(batch["picture"].flatten(1))).mean()
    return F.softplus(critic(made.detach())).mean() + real, F.softplus(-critic(made)).mean()


def detached(self, batch, batch_idx):
    made = self.forward_model(batch).detach()
    for i, name in enumerate(("critic", "generator")):
        self.optimise(name, losses(self, batch, made)[i])
    return {"spread": made.std()}


def only_one(self, batch, batch_idx):
    of_critic, _ = losses(self, batch, self.forward_model(batch))
    self.optimise("critic", of_critic)
    return {"critic": of_critic}


def without_zeros(self, batch, batch_idx):
    of_critic, of_generator = losses(self, batch, self.forward_model(batch))
    for optimiser, loss in zip(self.optimizers(), (of_generator, of_critic), strict=True):
        self.manual_backward(loss, retain_graph=True)
        optimiser.step()
    return {"critic": of_critic}


def make_without_a_layer(self):
    TwoNetworks.create_optimiser(self)
    group = self.optimiser["critic"].param_groups[0]
    group["params"] = group["params"][:-2]


def right(self, batch, batch_idx):
    of_critic, _ = losses(self, batch, self.forward_model(batch))
    self.optimise("critic", of_critic)
    _, of_generator = losses(self, batch, self.forward_model(batch))
    self.optimise("generator", of_generator)
    return {"critic": of_critic, "generator": of_generator}


def adversarial(name, expected, training_step, **hooks):
    own = {k: v for k, v in vars(TwoNetworks).items() if not k.startswith("__")}
    own |= {"__init__": scored_by_loss, "create_metrics": mean_metrics}
    case("pictures", expected)(type(name, (), {**own, "training_step": training_step, **hooks}))


adversarial("generator_is_cut_off", "optimiser/no_gradient", detached)
adversarial("generator_is_not_stepped", "optimiser/not_stepped", only_one)
adversarial("gradients_add_up", "optimiser/never_zeroed", without_zeros)
adversarial(
    "layer_in_no_optimiser",
    "optimiser/not_optimised",
    right,
    create_optimiser=make_without_a_layer,
)
adversarial("two_networks", None, right)


class WithTrainingStep:
    """The usual step, written by the project."""

    def training_step(self, batch, batch_idx):
        output = self.forward_model(batch)
        self.update_metrics(self.train_metrics, batch, output.detach())
        return self.forward_loss(batch, output)


@case("pictures", "activation/double_softmax")
class own_step_and_two_softmaxes:
    training_step = WithTrainingStep.training_step

    def forward_model(self, batch):
        return self.model(batch["picture"]).softmax(1)


@case("pictures", "broadcast/sum")
class own_step_and_a_sum:
    training_step = WithTrainingStep.training_step

    def create_loss(self):
        self.loss_fn = nn.CrossEntropyLoss(reduction="sum")


@case("pictures")
class own_step:
    training_step = WithTrainingStep.training_step


@case("pictures", "learning/equal_units")
class own_step_and_constant_weights:
    training_step = WithTrainingStep.training_step

    def create_model(self):
        Pictures.create_model(self)
        for weight in self.model.parameters():
            nn.init.constant_(weight, 0.02)
