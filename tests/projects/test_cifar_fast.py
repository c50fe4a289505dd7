"""The fast recipe: images that stay on the device, augmented there; its network and schedule."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from restarts import Killed, kill_at, result, same
from test_cifar import write_images
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from projects.cifar import CifarModule
from projects.cifar_fast import FastCifarData, FastCifarModule, WhitenedCifarModule
from projects.cifar_fast.module import Maximum
from projects.cifar_fast.whitened import Together, copying, set_norms, whiten


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def fit(run, images, tmp_path):
    """Runs some iterations of a config on a folder of images: (exit code, out, err)."""

    def fit_(config: str, *options: object) -> tuple[int, str, str]:
        few = ["--trainer.max_steps=8", "--trainer.val_check_interval=4", "--data.batch_size=8"]
        paths = ["--data.root", images, "--output_path", tmp_path / "experiments"]
        classes = ["--model.n_classes=3"]
        return run("fit", "--config", ROOT / "configs" / config, *few, *paths, *classes, *options)

    return fit_


LONGER = pytest.param("cifar_fast_180.yaml", marks=pytest.mark.slow)


@pytest.mark.long
@pytest.mark.parametrize("config", ["cifar_fast.yaml", "cifar_fast_gpu.yaml", LONGER])
def test_each_recipe_trains_and_killed_goes_on_bitwise(fit, run, sessions, monkeypatch, config):
    code, out, err = fit(config)
    assert code == 0, err
    assert "Finished at iteration 8\n" in out
    kill_at(monkeypatch, "on_train_batch_end", lambda trainer: trainer.global_step == 5)
    with pytest.raises(Killed):
        fit(config, "--save_minutes=0")
    assert run("fit", "--ckpt_path", sessions()[1])[0] == 0
    assert same(result(sessions()[1]), result(sessions()[0]))


def test_training_images_are_augmented_and_validation_images_are_not(fit, monkeypatch):
    batches: dict[bool, list] = {True: [], False: []}

    def forward(self, batch):
        data = self.trainer.datamodule
        batches[self.training].append((batch["image"], batch["label"], data))
        return self.model(batch["image"])

    monkeypatch.setattr(FastCifarModule, "forward_model", forward)
    assert fit("cifar_fast.yaml")[0] == 0
    images, labels, data = batches[False][0]
    assert torch.equal(images, data.val_dataset.images[:8])
    assert torch.equal(labels, data.val_dataset.labels[:8])
    first, second = ([*images] for images, _, _ in (batches[True][0], batches[True][3]))
    originals = data.train_dataset.images
    changed = [not any(torch.equal(image, other) for other in originals) for image in first]
    assert sum(changed) > 4  # one in 50 stays as it is
    labels = torch.cat([labels for _, labels, _ in batches[True][:3]])
    assert labels.bincount().tolist() == [8, 8, 8]  # an epoch has each image once
    assert not any(torch.equal(image, other) for image in first for other in second)


def test_images_are_moved_and_mirrored_no_further_than_asked(fit, monkeypatch):
    """Without padding nothing moves: an image is itself or its mirror image."""
    seen = []

    def forward(self, batch):
        if self.training:
            seen.append((batch["image"], self.trainer.datamodule.train_dataset.images))
        return self.model(batch["image"])

    monkeypatch.setattr(FastCifarModule, "forward_model", forward)
    assert fit("cifar_fast.yaml", "--data.padding=0")[0] == 0
    for images, originals in seen:
        known = torch.cat([originals, originals.flip(-1)])
        for image in images:
            assert (image == known).flatten(1).all(1).any()


def test_there_is_one_copy_of_the_images(fit, monkeypatch):
    made = []
    original = FastCifarData.create_data

    def create_data(self):
        original(self)
        made.append(self)

    monkeypatch.setattr(FastCifarData, "create_data", create_data)
    assert fit("cifar_fast.yaml", "--trainer.max_steps=2")[0] == 0
    [data] = made
    assert data.test_dataset is data.predict_dataset is data.val_dataset
    assert data.n_workers == 0


@pytest.mark.long
def test_each_set_is_taken_from_its_own_images(fit, run, sessions, monkeypatch):
    seen: dict[str, torch.Tensor] = {}

    def forward(self, batch):
        data, command = self.trainer.datamodule, self.trainer.state.fn.value
        of_validation = command in ("fit", "validate")
        seen[command] = batch["image"]
        seen[f"{command} of"] = (data.val_dataset if of_validation else data.test_dataset).images
        return self.model(batch["image"])

    monkeypatch.setattr(FastCifarModule, "forward_model", forward)
    assert fit("cifar_fast.yaml", "--data.n_held_out=7")[0] == 0
    for command in ("validate", "test", "predict"):
        assert run(command, "--ckpt_path", sessions()[0])[0] == 0
    for command in ("fit", "validate", "test", "predict"):  # the last batch, of a validation in fit
        images, originals = seen[command], seen[f"{command} of"]
        assert torch.equal(images, originals[-len(images) :]), command


def test_the_rates_fall_to_zero_at_the_last_iteration(fit, sessions):
    assert fit("cifar_fast.yaml")[0] == 0
    checkpoint = torch.load(sessions()[0] / "checkpoints/last.ckpt")
    assert [group["lr"] for group in checkpoint["optimizer_states"][0]["param_groups"]] == [0, 0]


def test_its_network_takes_less_than_an_eighth_of_the_guides_work(images):
    """Multiplications of the convolutions for one image."""

    def work(model: nn.Module) -> int:
        total = [0]

        def count(layer: nn.Conv2d, inputs: tuple, output: torch.Tensor) -> None:
            total[0] += layer.weight.numel() * output[0, 0].numel()

        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(count)
        model.eval()(torch.zeros(1, 3, 32, 32))
        return total[0]

    counts = []
    for module in (CifarModule(), FastCifarModule()):
        module.create_model()
        counts.append(work(module.model))
    assert counts[1] * 8 < counts[0]


@pytest.mark.parametrize("size", [(4, 4), (3, 3), (5, 2)])
@pytest.mark.parametrize("values", [torch.randn, lambda shape: torch.randint(3, shape).float()])
def test_the_maximum_and_its_gradient_are_those_of_adaptive_pooling(size, values):
    """Ties included: integers of three values have many."""
    maps = values((6, 5, *size)).to(memory_format=torch.channels_last)
    results = []
    for pool in (Maximum(), nn.AdaptiveMaxPool2d(1)):
        leaf = maps.clone().requires_grad_()
        output = pool(leaf)
        output.backward(torch.arange(30.0).reshape(6, 5, 1, 1))
        results.append((output, leaf.grad))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_a_layer_that_whitens_gives_patches_uncorrelated_channels_of_equal_power():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(50, 3, 8, 8, generator=generator).cumsum(3)  # neighbours are alike
    layer = nn.Conv2d(3, 24, 2, bias=False)
    whiten(layer, images)
    channels = layer(images).transpose(0, 1).flatten(1)
    assert torch.equal(channels[12:], -channels[:12])
    powers = channels[:12] @ channels[:12].T / channels.shape[1]
    torch.testing.assert_close(powers, torch.eye(12), atol=5e-3, rtol=0)
    assert not layer.weight.requires_grad


def test_a_convolution_begins_with_copies_of_its_input():
    maps = torch.randn(2, 3, 5, 5)
    assert torch.equal(copying(3, 7)(maps)[:, :3], maps)


def test_optimisers_together_step_as_each_alone_before_and_after_a_checkpoint():
    def weights() -> list[nn.Parameter]:
        generator = torch.Generator().manual_seed(0)
        return [nn.Parameter(torch.randn(3, generator=generator)) for _ in range(3)]

    def optimisers(a: nn.Parameter, b: nn.Parameter, c: nn.Parameter) -> tuple[Optimizer, ...]:
        sgd = SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.2}], momentum=0.9)
        return sgd, Adam([c], lr=0.3)

    def step(*steppers: Optimizer, of: list[nn.Parameter]) -> None:
        for weight in of:
            weight.grad = weight.detach().cos()
        for each in steppers:
            each.step()

    alone, joined = weights(), weights()
    apart, together = optimisers(*alone), Together(*optimisers(*joined))
    for _ in range(3):
        step(*apart, of=alone)
        step(together, of=joined)
    again = [nn.Parameter(weight.detach().clone()) for weight in joined]
    restarted = Together(*optimisers(*again))
    restarted.load_state_dict(together.state_dict())
    for _ in range(3):
        step(*apart, of=alone)
        step(restarted, of=again)
    assert same(alone, again)


def test_norms_are_those_of_filters_of_norm_1():
    kernels = [torch.randn(16, 3, 3, 3), torch.randn(4, 16, 3, 3)]
    directions = [kernel / kernel.norm() for kernel in kernels]
    set_norms(kernels)
    for kernel, direction in zip(kernels, directions, strict=True):
        torch.testing.assert_close(kernel, direction * len(kernel) ** 0.5)


def test_of_the_whitened_network_muon_trains_kernels_and_sgd_the_head_and_biases(images):
    module = WhitenedCifarModule(n_classes=3, widths=(8, 8, 8), stem_width=24, stem_stride=1)
    data = FastCifarData(root=images, batch_size=8)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    data.setup("fit")
    module.trainer = SimpleNamespace(datamodule=data, world_size=2, estimated_stepping_batches=9)
    module.create_model()
    module.create_optimiser()
    kernels, biases, head = module.optimiser.param_groups
    assert [weight.ndim for weight in kernels["params"]] == [4] * 6
    assert [weight.ndim for weight in biases["params"]] == [1] * 7
    assert [weight.ndim for weight in head["params"]] == [2]
    assert [group["lr"] for group in (kernels, biases, head)] == [0.2, 16 * 0.053, 16 * 0.67]
    trained = {id(w) for group in module.optimiser.param_groups for w in group["params"]}
    assert {id(w) for w in module.model.parameters() if w.requires_grad} == trained


@pytest.mark.long
def test_the_bias_of_the_first_layer_stays_after_its_share_of_the_iterations(fit, monkeypatch):
    seen = []

    def forward(self, batch):
        if self.training:
            seen.append((self.model[1][0].bias.clone(), self.model[2][0].weight.clone()))
        return self.model(batch["image"])

    monkeypatch.setattr(WhitenedCifarModule, "forward_model", forward)
    code, _, err = fit("cifar_fast_180.yaml", "--model.stem_share=0.4")
    assert code == 0, err
    bias, kernel = zip(*seen, strict=True)
    assert [not torch.equal(a, b) for a, b in pairwise(bias)] == [True] * 4 + [False] * 3
    assert not any(torch.equal(a, b) for a, b in pairwise(kernel))
