"""Mistakes of the network, its loss and its metric."""

import copy

import torch
import torch.nn.functional as F
from bases import N_TOKENS, Attention, Pictures, Recurrent, Table, TableData, case, dense
from torch import nn
from torchmetrics import MeanSquaredError
from torchmetrics.classification import MulticlassPrecision


@case("pictures", "activation/double_softmax")
class probabilities_into_cross_entropy:
    def forward_model(self, batch):
        return self.model(batch["picture"]).softmax(1)


@case("spots", "activation/double_softmax")
class sigmoid_twice:
    def forward_model(self, batch):
        return self.model(batch["picture"]).sigmoid()


@case("pictures", "activation/nll_of_logits")
class logits_into_nll:
    def create_loss(self):
        self.loss_fn = nn.NLLLoss()


@case("pictures", "activation/bounded_logits")
class relu_after_the_last_layer:
    def create_model(self):
        self.model = nn.Sequential(dense(64, 32, 10), nn.ReLU())


@case("table", "activation/out_of_reach")
class sigmoid_for_any_number:
    def forward_model(self, batch):
        return self.model(batch["x"]).squeeze(1).sigmoid()


@case("pictures", "activation/softmax_over_batch")
class softmax_of_dimension_0:
    def forward_loss(self, batch, output):
        return -output.softmax(0)[torch.arange(len(output)), batch["label"]].log().mean()


@case("table", "broadcast/expanded")
class column_against_row:
    def columns(self):
        columns = TableData.columns(self)
        return {**columns, "y": columns["y"][:, None]}

    def forward_loss(self, batch, output):
        return (output - batch["y"]).abs().mean()

    def update_metrics(self, metrics, batch, output):
        metrics.update(output, batch["y"].squeeze(1))


@case("table", "broadcast/expanded")
class mse_of_column_and_row:
    def forward_model(self, batch):
        return self.model(batch["x"])

    def update_metrics(self, metrics, batch, output):
        metrics.update(output.squeeze(1), batch["y"])


@case("pictures", "broadcast/sum")
class cross_entropy_is_summed:
    def create_loss(self):
        self.loss_fn = nn.CrossEntropyLoss(reduction="sum")


@case("table", "broadcast/sum")
class squares_are_summed:
    def forward_loss(self, batch, output):
        return (output - batch["y"]).square().sum()


@case("words", "mixing/mixed")
class attention_over_the_batch:
    def create_model(self):
        self.model = Attention(causal=False, batch_first=False)


@case("table", "mixing/mixed")
class standardised_by_the_batch:
    def forward_model(self, batch):
        x = batch["x"]
        return self.model((x - x.mean(0)) / x.std(0)).squeeze(1)


@case("words", "future/seen")
class attention_without_a_mask:
    def create_model(self):
        self.model = Attention(causal=False)


@case("words", "future/seen")
class read_in_both_directions:
    def create_model(self):
        self.model = Recurrent(bidirectional=True)


class ListOfLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = [nn.Linear(6, 6), nn.Linear(6, 6)], nn.Linear(6, 1)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x).relu()
        return self.head(x)


@case("table", "unregistered/kept_in_python")
class layers_in_a_list:
    def create_model(self):
        self.model = ListOfLayers()


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 1)

    def forward(self, x):
        return self.head(self.body(x).relu().detach())


@case("table", "unregistered/no_gradient")
class cut_by_detach:
    def create_model(self):
        self.model = Detached()


@case("table", "unregistered/unused")
class layer_that_is_never_called:
    def create_model(self):
        Table.create_model(self)
        self.model.extra = nn.Linear(3, 3)
        self.model.forward = lambda x: self.model[5](self.model[4](self.model[3](self.model[1](x))))


@case("pictures", "modes/eval_mode")
class left_in_eval_mode:
    def create_model(self):
        self.model = nn.Sequential(dense(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
        self.model.eval()


@case("table", "modes/dropout")
class dropout_in_evaluation:
    def forward_model(self, batch):
        return self.model(F.dropout(batch["x"], 0.2)).squeeze(1)


class Counts(nn.Linear):
    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        self.mean.lerp_(x.detach().mean(0), 0.1)
        return super().forward(x - self.mean)


@case("table", "modes/changed")
class statistics_of_validation_data:
    def create_model(self):
        self.model = Counts(6, 1)


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.gru = nn.Embedding(N_TOKENS, 8), nn.GRU(8, 8, batch_first=True)
        self.head, self.hidden = nn.Linear(8, N_TOKENS), None

    def forward(self, tokens):
        fits = self.hidden is not None and self.hidden.shape[1] == len(tokens)
        x, hidden = self.gru(self.embedding(tokens), self.hidden if fits else None)
        self.hidden = hidden.detach()
        return self.head(x)


@case("words", "modes/state")
class hidden_state_of_the_batch_before:
    def create_model(self):
        self.model = Remembers()


@case("pictures", "metric/swapped")
class target_before_prediction:
    def create_metrics(self):
        precision = MulticlassPrecision(10, average="macro")
        self.train_metrics, self.val_metrics = precision, precision.clone()

    def update_metrics(self, metrics, batch, output):
        metrics.update(batch["label"], output.argmax(1))


@case("pictures", "metric/fixed")
class labels_against_themselves:
    def update_metrics(self, metrics, batch, output):
        metrics.update(F.one_hot(batch["label"], 10).float(), batch["label"])


@case("words", "metric/disagrees")
class compared_with_the_input:
    def update_metrics(self, metrics, batch, output):
        metrics.update(output.flatten(0, 1), batch["tokens"].flatten())


@case("words", "metric/disagrees")
class reshaped_without_transpose:
    def forward_model(self, batch):
        return self.model(batch["tokens"]).transpose(1, 2).contiguous()

    def forward_loss(self, batch, output):
        return self.loss_fn(output.view(-1, N_TOKENS), batch["target"].flatten())

    def update_metrics(self, metrics, batch, output):
        metrics.update(output.transpose(1, 2).flatten(0, 1), batch["target"].flatten())


@case("pictures", "metric/disagrees")
class likelihood_is_minimised:
    def forward_loss(self, batch, output):
        return output.log_softmax(1).gather(1, batch["label"][:, None]).mean()


class RootOfBatchError(MeanSquaredError):
    """The mean over batches of the root of the mean squared error."""

    def update(self, preds, target):
        self.sum_squared_error = self.sum_squared_error + (preds - target).square().mean().sqrt()
        self.total = self.total + 1


@case("table", "metric/mean_of_batches")
class mean_of_roots:
    def create_metrics(self):
        self.train_metrics, self.val_metrics = RootOfBatchError(), RootOfBatchError()


@case("pictures", "learning/dead")
class biases_far_below_zero:
    def create_model(self):
        Pictures.create_model(self)
        for layer in self.model:
            if isinstance(layer, nn.Linear):
                nn.init.constant_(layer.bias, -6.0)


@case("pictures", "learning/equal_units")
class constant_weights:
    def create_model(self):
        Pictures.create_model(self)
        for weight in self.model.parameters():
            nn.init.constant_(weight, 0.02)


@case("pictures", "learning/start")
class huge_weights:
    def create_model(self):
        Pictures.create_model(self)
        for weight in self.model.parameters():
            nn.init.normal_(weight, std=2.0)


@case("table", "learning/ignored_input")
class zeros_into_the_network:
    def forward_model(self, batch):
        return self.model(torch.zeros_like(batch["x"])).squeeze(1)


@case("pictures", "learning/vanishing")
class twenty_sigmoid_layers:
    def create_model(self):
        self.model = dense(64, *[16] * 20, 10, activation=nn.Sigmoid)


@case("pictures", "frozen/random")
class frozen_before_loading:
    def create_model(self):
        Pictures.create_model(self)
        self.model[1].requires_grad_(False)

    def create_optimiser(self):
        weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(weights, 5e-3)


@case("pictures", "loaded/none")
class names_with_a_prefix:
    def create_model(self):
        Pictures.create_model(self)
        weights = copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict({f"module.{k}": v for k, v in weights.items()}, strict=False)


@case("pictures", "learning/not_learned")
class logits_are_cut_off:
    def forward_model(self, batch):
        return self.model(batch["picture"]).clamp(-0.01, 0.01)
