"""Mistakes of samples, labels and splits."""

import numpy as np
import torch
from bases import KINDS, N_TOKENS, PicturesData, Recurrent, Rows, TableData, WordsData, case, dense
from torch import nn


def halves(self, columns, order, n_val=160):
    """Sets both datasets from one order."""
    for mode, part in (("train", order[n_val:]), ("val", order[:n_val])):
        setattr(self, f"{mode}_dataset", Rows(**{k: v[part] for k, v in columns.items()}))


def transformed(kind, transform, modes=("train",)):
    """`create_data` with a transform of the samples."""

    def create_data(self):
        KINDS[kind][1].create_data(self)
        for mode in modes:
            getattr(self, f"{mode}_dataset").transform = transform

    return create_data


class Reused(Rows):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        self.picture = getattr(self, "picture", torch.empty(1, 8, 8))
        return {**sample, "picture": self.picture.copy_(sample["picture"])}


@case("pictures", "samples/buffer")
class one_buffer_for_all_samples:
    def create_data(self):
        PicturesData.create_data(self)
        for mode in ("train", "val"):
            setattr(self, f"{mode}_dataset", Reused(**getattr(self, f"{mode}_dataset").columns))


def brighten(sample):
    sample["picture"] += 0.1
    return sample


@case("pictures", "samples/unsteady")
class stored_picture_changed_in_place:
    create_data = transformed("pictures", brighten)


_generator = np.random.default_rng(0)


@case("pictures", "samples/unsteady")
class generator_of_its_own:
    create_data = transformed(
        "pictures",
        lambda s: {**s, "picture": s["picture"].roll(int(_generator.integers(-2, 3)), 1)},
    )


def reseed(sample):
    np.random.seed(1)
    return {**sample, "picture": sample["picture"].roll(np.random.randint(-2, 3), 1)}


@case("pictures", "samples/reseeded")
class seeded_in_each_sample:
    create_data = transformed("pictures", reseed)


def shift(sample):
    by = torch.randint(-2, 3, (1,)).item()
    return {**sample, "picture": sample["picture"].roll(by, 1)}


@case("pictures", "samples/augmented")
class split_of_an_augmented_dataset:
    def create_data(self):
        data = Rows(shift, **self.columns())
        generator = torch.Generator().manual_seed(0)
        parts = torch.utils.data.random_split(data, [640, 160], generator)
        self.train_dataset, self.val_dataset = parts


@case("table", "values/not_finite")
class missing_values_are_nan:
    def columns(self):
        columns = TableData.columns(self)
        columns["x"][::50, 2] = torch.nan
        return columns


@case("pictures", "values/identical")
class index_is_not_used:
    create_data = transformed("pictures", lambda s: {**s, "picture": torch.ones(1, 8, 8)})


@case("pictures", "values/one_label")
class all_labels_equal:
    create_data = transformed("pictures", lambda s: {**s, "label": torch.tensor(3)})


@case("pictures", "values/unseen_labels")
class sorted_then_cut:
    def create_data(self):
        columns = self.columns()
        halves(self, columns, columns["label"].argsort(descending=True, stable=True))


@case("pictures", "values/never_0")
class labels_counted_from_one:
    n_classes = 11

    def columns(self):
        columns = PicturesData.columns(self)
        return {**columns, "label": columns["label"] + 1}

    def create_model(self):
        self.model = dense(64, 32, 11)


@case("pictures", "leak/copies")
class copied_before_the_split:
    def create_data(self):
        columns = self.columns()
        nines = columns["label"].eq(9).nonzero().flatten().repeat(4)
        order = torch.cat([torch.arange(800), nines])
        order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(0))]
        halves(self, columns, order, 250)


@case("pictures", "leak/same_dataset")
class validated_on_the_training_data:
    def create_data(self):
        self.train_dataset = self.val_dataset = Rows(**self.columns())


@case("pictures", "leak/near")
class variants_before_the_split:
    def create_data(self):
        columns = self.columns()
        noise = torch.randn(
            4, *columns["picture"].shape, generator=torch.Generator().manual_seed(0)
        )
        pictures = (columns["picture"] + 0.01 * noise).flatten(0, 1)
        order = torch.randperm(3200, generator=torch.Generator().manual_seed(1))
        columns = {"picture": pictures, "label": columns["label"].repeat(4)}
        halves(self, columns, order, 400)


@case("pictures", "scale/large")
class pixels_up_to_255:
    def columns(self):
        columns = PicturesData.columns(self)
        return {**columns, "picture": columns["picture"] * 255}


@case("table", "scale/uneven")
class features_of_other_units:
    def columns(self):
        columns = TableData.columns(self)
        columns["x"] = columns["x"] * torch.tensor([1e-4, 1e-4, 1e-4, 1e-4, 1e-4, 3.0])
        return columns


@case("pictures", "scale/shift")
class validation_up_to_255:
    create_data = transformed(
        "pictures", lambda s: {**s, "picture": s["picture"] * 255}, modes=("val",)
    )


@case("table", "scale/shift")
class only_training_standardised:
    create_data = transformed("table", lambda s: {**s, "x": 3 * s["x"] + 9}, modes=("val",))


@case("table", "features/target")
class target_in_the_table:
    def columns(self):
        columns = TableData.columns(self)
        x = torch.cat([columns["x"][:, :5], 2 * columns["y"][:, None]], 1)
        return {**columns, "x": x}


@case("words", "future/padding")
class padding_counts:
    def columns(self):
        columns = WordsData.columns(self)
        for name in ("tokens", "target"):
            columns[name][::2, 6:] = 0
        return columns

    def create_model(self):
        self.model = Recurrent()
        self.model.embedding = nn.Embedding(N_TOKENS, 16, padding_idx=0)


@case("words", "future/not_shifted")
class target_is_the_input:
    def forward_loss(self, batch, output):
        return self.loss_fn(output.flatten(0, 1), batch["tokens"].flatten())


@case("pictures", "relation/unrelated")
class labels_of_other_pictures:
    def create_data(self):
        PicturesData.create_data(self)
        columns = self.train_dataset.columns
        order = torch.randperm(len(columns["label"]), generator=torch.Generator().manual_seed(0))
        columns["label"] = columns["label"][order]
