"""All that knows the commands reads one list."""

import pytest
from lightning.pytorch.cli import LightningCLI

from lightning_trainer.commands.registry import COMMANDS, HELP


@pytest.mark.parametrize("name", COMMANDS)
def test_the_place_of_a_command_is_a_function(name):
    assert callable(COMMANDS[name].load())


def test_lightnings_commands_are_those_that_lightning_has():
    own = [name for name, command in COMMANDS.items() if command.is_lightnings]
    assert own == list(LightningCLI.subcommands())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_names_each_command(name):
    assert name in HELP
    assert COMMANDS[name].summary.endswith(".")
    assert len(COMMANDS[name].summary.splitlines()) == 1


def test_the_examples_of_the_help_stand_in_two_columns_of_a_terminal():
    assert max(map(len, HELP.splitlines())) <= 100
    assert all(line == line.rstrip() for line in HELP.splitlines())
