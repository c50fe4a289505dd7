"""The guide's example: its data from either layout, its network, its pictures."""

import pickle
import shutil
from itertools import pairwise
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets.cifar
from conftest import ROOT
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_trainer.base.scoring import score_direction
from projects.cifar import CifarData, CifarModule
from projects.cifar.module import Normalise

COLOURS = {"blue": (20, 30, 220), "green": (20, 200, 40), "red": (210, 30, 20)}


def write_images(root: Path, n_train: int = 8, n_test: int = 3) -> Path:
    """An image folder of three classes, each of one colour with noise, in odd sizes and formats."""
    random = np.random.default_rng(0)
    for split, n in (("train", n_train), ("test", n_test)):
        for colour, rgb in COLOURS.items():
            folder = root / split / colour
            folder.mkdir(parents=True)
            for i in range(n):
                height, width = random.integers(17, 50, 2)
                noise = random.integers(-20, 21, (height, width, 3))
                image = Image.fromarray((np.array(rgb) + noise).clip(0, 255).astype(np.uint8))
                image.save(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
    return root


@pytest.fixture(scope="module")
def shared_images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def images(shared_images, tmp_path) -> Path:
    """A copy of the images that a test may change."""
    return Path(shutil.copytree(shared_images, tmp_path / "images"))


@pytest.fixture
def fit(run, tmp_path):
    """Runs some iterations of configs/cifar.yaml on a folder: (exit code, out, err)."""

    def fit_(root: Path, *options: object) -> tuple[int, str, str]:
        few = [
            *("--trainer.max_steps=4", "--trainer.val_check_interval=2", "--data.batch_size=8"),
            *("--trainer.log_every_n_steps=2", "--model.vis_iterations=2"),
        ]
        paths = ["--data.root", root, "--output_path", tmp_path / "experiments"]
        return run("fit", "--config", ROOT / "configs/cifar.yaml", *few, *paths, *options)

    return fit_


def is_one_message(result: tuple[int, str, str]) -> bool:
    code, _, err = result
    return code == 1 and err.startswith("error: ") and len(err.splitlines()) == 1


# A folder of images ---------------------------------------------------------------------------


def test_a_folder_of_images_trains_and_shows_its_pictures(fit, shared_images, tmp_path):
    code, out, err = fit(shared_images, "--model.n_classes", "3")
    assert code == 0, err
    assert "Finished at iteration 4\n" in out
    [session] = (tmp_path / "experiments").iterdir()
    events = EventAccumulator(str(session))
    events.Reload()
    for mode in ("train", "val"):
        assert [picture.step for picture in events.Images(f"{mode}/predictions")] == [2, 4]
    assert (session / "confusion_matrix.png").exists()


def test_the_wrong_number_of_classes_is_one_message_with_the_remedy(fit, shared_images):
    result = fit(shared_images)
    assert is_one_message(result), result[2]
    assert result[2] == (
        "error: `model.n_classes` is 10, but the data has 3 classes: give --model.n_classes 3\n"
    )


def test_classes_that_differ_between_train_and_test_are_named(fit, images):
    (images / "test" / "red").rename(images / "test" / "yellow")
    result = fit(images, "--model.n_classes", "3")
    assert is_one_message(result), result[2]
    assert f"the classes in {images}/train and {images}/test differ" in result[2]
    assert "['red', 'yellow']" in result[2]
    assert "make the same folders in both" in result[2]


def test_a_missing_test_folder_is_one_message(fit, images):
    shutil.rmtree(images / "test")
    result = fit(images, "--model.n_classes", "3")
    assert is_one_message(result), result[2]
    assert f"{images}/test" in result[2]


def test_a_class_without_images_is_one_message(fit, images):
    shutil.rmtree(images / "test" / "red")
    (images / "test" / "red").mkdir()
    result = fit(images, "--model.n_classes", "3")
    assert is_one_message(result), result[2]
    assert "red" in result[2]


def test_a_file_that_is_no_image_is_named(fit, images):
    (images / "train" / "red" / "0.png").write_text("hello")
    code, _, err = fit(images, "--model.n_classes", "3")
    assert code == 1
    assert f"{images}/train/red/0.png" in err


@pytest.mark.parametrize("size", [32, 20])
def test_images_are_resized_and_keep_their_class(shared_images, size):
    data = CifarData(root=str(shared_images), image_size=size)
    data.prepare_data()
    data.create_data()
    assert data.classes == ["blue", "green", "red"]
    assert data.train_dataset.images.shape == (24, 3, size, size)
    assert data.val_dataset.images.shape == (9, 3, size, size)
    assert data.train_dataset.images.dtype == torch.uint8
    for dataset in (data.train_dataset, data.val_dataset):
        means = dataset.images.float().mean((2, 3))  # (N, 3)
        wanted = torch.tensor(list(COLOURS.values()), dtype=torch.float32)[dataset.labels]
        assert (means - wanted).abs().max() < 10


def test_an_image_of_the_right_size_is_taken_as_it_is(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    for split, image in zip(("train", "test"), pixels, strict=True):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / split / "a" / "0.png")
    data = CifarData(root=str(tmp_path))
    data.create_data()
    assert torch.equal(data.train_dataset.images[0], torch.from_numpy(pixels[0]).permute(2, 0, 1))
    assert torch.equal(data.val_dataset.images[0], torch.from_numpy(pixels[1]).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_grey_transparent_and_palette_images_become_rgb(tmp_path, mode):
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        image = Image.new("RGB", (32, 32), (255, 255, 255)).convert(mode)
        image.save(tmp_path / split / "a" / "0.png")
    data = CifarData(root=str(tmp_path))
    data.create_data()
    assert torch.equal(data.train_dataset.images, torch.full((1, 3, 32, 32), 255).byte())


def test_the_classes_of_a_folder_are_mixed_the_same_each_time(shared_images):
    first, second = (CifarData(root=str(shared_images)) for _ in range(2))
    first.create_data()
    second.create_data()
    labels = first.train_dataset.labels
    assert labels.tolist() != sorted(labels.tolist())
    assert torch.equal(labels, second.train_dataset.labels)
    assert torch.equal(first.train_dataset.images, second.train_dataset.images)


def test_a_batch_is_the_samples_stacked(shared_images):
    data = CifarData(root=str(shared_images))
    data.create_data()
    dataset, indices = data.train_dataset, [5, 0, 23, 5]
    batch = dataset.get_batch(torch.tensor(indices), torch.zeros(4, dtype=torch.int64))
    for key in ("image", "label"):
        assert torch.equal(batch[key], torch.stack([dataset[i][key] for i in indices]))
    assert len(dataset) == 24


def test_training_images_can_be_held_out_to_choose_by(shared_images):
    whole, split = CifarData(str(shared_images)), CifarData(str(shared_images), n_held_out=5)
    whole.create_data()
    split.create_data()
    images = whole.train_dataset.images
    assert torch.equal(split.train_dataset.images, images[:19])
    assert torch.equal(split.val_dataset.images, images[19:])
    assert torch.equal(split.val_dataset.labels, whole.train_dataset.labels[19:])
    assert torch.equal(split.test_dataset.images, whole.val_dataset.images)


@pytest.mark.parametrize("n", [24, -1])
def test_as_many_as_there_are_can_not_be_held_out(fit, shared_images, n):
    result = fit(shared_images, "--model.n_classes=3", f"--data.n_held_out={n}")
    assert is_one_message(result)
    assert f"`data.n_held_out` is {n}" in result[2]


# CIFAR-10 as torchvision has it ---------------------------------------------------------------


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A few images in CIFAR-10's own files: (root, {split: (data, labels)})."""
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)

    def write(name: str, n: int) -> tuple[np.ndarray, list[int]]:
        data = random.integers(0, 256, (n, 3072), dtype=np.uint8)
        labels = random.integers(0, 10, n).tolist()
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
        return data, labels

    batches = [write(f"data_batch_{i}", 4) for i in range(1, 6)]
    train = (
        np.concatenate([data for data, _ in batches]),
        [y for _, labels in batches for y in labels],
    )
    test = write("test_batch", 6)
    meta = {"label_names": [f"class {i}" for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    # The sums are those of the real files.
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args: True)
    forbid_network(monkeypatch)
    return folder.parent, {"train": train, "val": test}


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", fail)


def test_cifars_own_files_are_read_pixel_by_pixel(cifar):
    root, splits = cifar
    data = CifarData(root=str(root))
    data.prepare_data()
    data.create_data()
    assert data.classes == [f"class {i}" for i in range(10)]
    for dataset, split in ((data.train_dataset, "train"), (data.val_dataset, "val")):
        pixels, labels = splits[split]
        # Each row of a file is red, green, blue; each of these is row by row.
        assert torch.equal(dataset.images, torch.from_numpy(pixels).reshape(-1, 3, 32, 32))
        assert dataset.images.is_contiguous()
        assert dataset.labels.tolist() == labels


def test_cifars_own_files_train_without_more_options(fit, cifar):
    root, _ = cifar
    code, out, err = fit(root)
    assert code == 0, err
    assert "Finished at iteration 4\n" in out


def test_without_data_and_network_one_message_has_both_ways_out(fit, tmp_path, monkeypatch):
    forbid_network(monkeypatch)
    root = tmp_path / "nothing"
    result = fit(root)
    assert is_one_message(result), result[2]
    assert (
        f"`data.root` is '{root}': there is no CIFAR-10 in it and it can't be downloaded"
        in (result[2])
    )
    assert "no network" in result[2]
    assert "run once where there is a network" in result[2]
    assert f"put images into {root}/train/CLASS/* and {root}/test/CLASS/*" in result[2]


# The network ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module() -> CifarModule:
    module = CifarModule()
    module.configure_model()
    return module.eval()


def test_the_network_has_the_guides_layers(module):
    convolutions = [layer for layer in module.model.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.in_channels for layer in convolutions] == [3, 8, 16, 32, 64, 128, 256]
    assert [layer.out_channels for layer in convolutions] == [8, 16, 32, 64, 128, 256, 512]
    assert [layer.stride for layer in convolutions] == [(1, 1)] * 4 + [(2, 2)] * 3
    assert {layer.kernel_size for layer in convolutions} == {(3, 3)}
    linear = [layer for layer in module.model.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(512, 100), (100, 10)]


def test_batch_norm_and_relu_follow_each_convolution_and_relu_the_first_linear_layer(module):
    layers = [layer for layer in module.model.modules() if not list(layer.children())]
    kinds = [type(layer) for layer in layers]
    triple = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    head = [nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    assert kinds == [Normalise, *triple * 7, *head]


def test_the_number_of_parameters_is_that_computed_by_hand(module):
    widths = [3, 8, 16, 32, 64, 128, 256, 512]
    weights = sum(9 * n_in * n_out for n_in, n_out in pairwise(widths))
    biases, batch_norms = sum(widths[1:]), 2 * sum(widths[1:])
    head = 512 * 100 + 100 + 100 * 10 + 10
    assert weights + biases + batch_norms + head == 1_628_054
    assert sum(parameter.numel() for parameter in module.parameters()) == 1_628_054


@pytest.mark.parametrize("size", [32, 33, 64])
def test_images_of_any_size_give_logits(module, size):
    with torch.no_grad():
        images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
        assert module.forward_model({"image": images}).shape == (2, 10)


def test_full_resolution_is_kept_up_to_64_channels_and_then_halved(module):
    sizes = []
    hooks = [
        layer.register_forward_hook(lambda layer, args, output: sizes.append(output.shape[-1]))
        for layer in module.model.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    with torch.no_grad():
        module.forward_model({"image": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)})
    for hook in hooks:
        hook.remove()
    assert sizes == [32, 32, 32, 32, 16, 8, 4]


def test_pixels_are_normalised_by_cifars_mean_and_standard_deviation():
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    std = torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)
    expected = (images / 255 - mean) / std
    normalise = Normalise()
    torch.testing.assert_close(normalise(images), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(normalise(images), (images - normalise.mean) / normalise.std)  # bitwise
    assert not list(normalise.parameters())


def test_images_that_are_floats_already_stay_as_they_are():
    images = torch.rand(2, 3, 4, 4)
    before = images.clone()
    Normalise()(images)
    assert torch.equal(images, before)


def test_loss_and_optimiser_are_the_guides(module):
    module.create_optimiser()
    assert isinstance(module.loss_fn, nn.CrossEntropyLoss)
    assert type(module.optimiser) is torch.optim.Adam
    [group] = module.optimiser.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-3, 1e-4)
    assert len(group["params"]) == len(list(module.parameters()))


def test_frozen_parameters_are_not_optimised():
    module = CifarModule()
    module.configure_model()
    frozen = module.model[1][0].weight.requires_grad_(False)
    module.create_optimiser()
    assert all(parameter is not frozen for parameter in module.optimiser.param_groups[0]["params"])


def test_the_score_is_the_share_of_images_classified_rightly(module):
    labels = torch.tensor([0, 0, 0, 1])
    logits = nn.functional.one_hot(torch.tensor([0, 0, 1, 1]), 10).float()
    module.val_metrics.reset()
    module.update_metrics(module.val_metrics, {"label": labels}, logits)
    assert module.val_metrics.compute() == 0.75  # not the mean over classes, (2/3 + 1) / 2
    assert module.score_key == "val/accuracy"
    assert score_direction(module) == "max"
