"""What a project keeps in Python objects is found, and told apart by its type and value."""

import random

import numpy as np
import torch
from conftest import TinyData, TinyModule

from lightning_trainer.verify.own import is_generator, own_state


class Jitter:
    def __init__(self) -> None:
        self.generators = [torch.Generator(), np.random.RandomState(0)]


class OwnData(TinyData):
    def create_data(self) -> None:
        super().create_data()
        self.train_dataset.transform = Jitter()
        self.train_dataset.paths = [str(i) for i in range(2000)]


class OwnModule(TinyModule):
    def create_model(self) -> None:
        super().create_model()
        self.model.n_calls, self._seen = 0, {"a": [1, 2]}
        self._rng, self.mean = random.Random(0), torch.zeros(3)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def found() -> tuple[OwnModule, OwnData, dict[str, list[str]]]:
    module, data = OwnModule(), OwnData()
    module.configure_model()
    data.setup("fit")
    return module, data, own_state(module, data)


def test_generators_numbers_lists_and_tensors_are_found_where_they_are():
    _, _, state = found()
    kinds = {name: kind for name, (kind, _) in state.items()}
    for name, kind in {
        "model.model.n_calls": "int",
        "model._seen.a": "list",
        "model._rng": "random.Random",
        "model.mean": "torch.Tensor",
        "model.scratch": "buffer that is not persistent",
        "data.train_dataset.transform.generators.0": "torch._C.Generator",
        "data.train_dataset.transform.generators.1": "numpy.random.mtrand.RandomState",
    }.items():
        assert kinds[name] == kind
        assert is_generator(kind) == ("generator" in name or "_rng" in name)


def test_what_a_checkpoint_holds_and_long_lists_are_left_out():
    _, _, state = found()
    assert not [name for name in state if "metrics" in name or "weight" in name or "paths" in name]


def test_a_tensor_whose_memory_was_given_back_is_left_out():
    module, data, before = found()
    module.mean = torch.ones(3)
    module.mean.untyped_storage().resize_(0)
    assert set(before) - set(own_state(module, data)) == {"model.mean"}


def test_a_draw_or_a_change_shows_there_alone():
    module, data, before = found()
    assert own_state(module, data) == before
    module._rng.random()
    module.model.n_calls += 1
    module.scratch += 1
    data.train_dataset.transform.generators[1].rand()
    after = own_state(module, data)
    assert {name for name in after if after[name] != before[name]} == {
        "model._rng",
        "model.model.n_calls",
        "model.scratch",
        "data.train_dataset.transform.generators.1",
    }
