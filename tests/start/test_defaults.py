"""Settings that YAML can't hold are left out where they are defaults, and hold at a restart."""

import enum
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import yaml
from conftest import TinyModule
from jsonargparse import ArgumentParser, Namespace
from tiny import settings
from torch import nn

from lightning_trainer.start.defaults import storable

CALLBACKS = "lightning.pytorch.callbacks"
CPU, ONES = torch.device("cpu"), torch.ones(2)


class Act(enum.Enum):
    relu = "relu"
    tanh = "tanh"


@dataclass
class Places:
    place: torch.device = CPU
    n: int = 3


def double(x: int) -> int:
    return 2 * x


class Typed:
    """Defaults of many kinds: first those that YAML holds, then those that it does not."""

    def __init__(
        self,
        act: Act = Act.relu,
        path: pathlib.Path = pathlib.Path("a/b"),
        dtype: torch.dtype = torch.float32,
        kind: type[nn.Module] = nn.ReLU,
        function: Callable[[int], int] = double,
        betas: tuple[float, float] = (0.9, 0.99),
        names: set[str] = {"a"},  # noqa: B006
        untyped=(1, 2),
        numbers: dict[int, str] = {1: "a"},  # noqa: B006
        infinite: float = float("inf"),
        module: nn.Module = nn.ReLU(),  # noqa: B008
        place: torch.device = CPU,
        place_or_name: torch.device | str = CPU,
        any_path: Any = pathlib.Path("a"),
        any_tuple: Any = (1, 2),
        any_dtype: Any = torch.float16,
        small: Callable[[int], int] = lambda x: x,
        tensor: torch.Tensor = ONES,
        places: Places = Places(),  # noqa: B008
        mixed: dict[str, Any] = {"a": CPU},  # noqa: B006
    ) -> None:
        self.given = {name: value for name, value in locals().items() if name != "self"}


LEFT_OUT = [
    *("place", "place_or_name", "any_path", "any_tuple", "any_dtype", "small", "tensor"),
    *("places", "mixed"),
]


def parsed(*arguments: str) -> tuple[ArgumentParser, Namespace]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Typed, "model")
    return parser, parser.parse_args(["--model=test_defaults.Typed", *arguments])


def stored(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    return yaml.safe_load(parser.dump(storable(config), skip_unset=False))["model"]


def test_what_yaml_would_not_give_back_is_left_out_and_all_else_is_kept():
    parser, config = parsed()
    kept = stored(parser, config)
    assert [n for n in vars(config.model.init_args) if n not in kept["init_args"]] == LEFT_OUT
    again = parser.parse_args([f"--model={yaml.safe_dump(kept)}"])
    first, second = (parser.instantiate(c).model.given for c in (config, again))
    assert [(n, type(v), repr(v)) for n, v in first.items()] == [
        (n, type(v), repr(v)) for n, v in second.items()
    ]


def test_parts_of_a_dataclass_that_were_given_are_kept():
    parser, config = parsed("--model.places.n=5")
    assert stored(parser, config)["init_args"]["places"] == {"n": 5}


def test_a_setting_in_a_callback_of_a_list_is_left_out():
    _, config = parsed()
    nested = Namespace(callbacks=[config.model], by_name={"a": config.model})
    found = storable(nested)
    assert "place" not in found.callbacks[0].init_args
    assert "place" not in found.by_name["a"].init_args
    assert "place" in config.model.init_args  # the settings of the run are as they were


def test_what_is_no_default_is_refused_by_its_name():
    _, config = parsed()
    config.model.init_args.small = lambda x: x + 1
    with pytest.raises(ValueError, match=r"`model.small` is <function .* config.yaml can't hold"):
        storable(config)


class TypedModule(TinyModule):
    """Says what it was given."""

    def __init__(
        self,
        place: torch.device = CPU,
        activation: Callable[[Any], Any] = lambda x: x,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        print("GIVEN", place, activation is self.hparams.activation, self.hparams.place)


def test_a_run_with_such_defaults_says_nothing_of_them_goes_on_and_is_tested(run, config, sessions):
    flags = ("--model=test_defaults.TypedModule", "--trainer.max_steps=5")
    flags += (f"--trainer.callbacks+={CALLBACKS}.Timer", "--trainer.callbacks.duration=00:01:00:00")
    flags += (f"--trainer.callbacks+={CALLBACKS}.StochasticWeightAveraging",)
    flags += ("--trainer.callbacks.swa_lrs=0.01", "--trainer.callbacks.swa_epoch_start=2")
    flags += ("--trainer.max_epochs=3",)
    code, out, err = run("fit", "--config", config, *flags)
    assert code == 0, err
    assert "GIVEN cpu True cpu" in out
    assert "erialize" not in out + err
    [session] = sessions()
    assert "place" not in settings(session)["model"]["init_args"]
    timer, average = settings(session)["trainer"]["callbacks"]
    assert "interval" not in timer["init_args"]
    assert "device" not in average["init_args"]
    held = torch.load(session / "checkpoints/last.ckpt")["hyper_parameters"]
    assert "learning_rate" in held
    assert not {"place", "activation"} & held.keys()
    code, out, err = run("fit", "--ckpt_path", session, "--trainer.max_steps=7")
    assert code == 0, err
    assert "GIVEN cpu True cpu" in out
    assert run("test", "--ckpt_path", session)[0] == 0
