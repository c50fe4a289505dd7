"""Each private part that is touched is still as it was read; one test for each."""

import argparse
import sys

import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningCLI

from lightning_trainer.base.data import BaseDataModule
from lightning_trainer.base.module import BaseModule
from lightning_trainer.internals import Refusal, option_names, root_cause
from lightning_trainer.start.parser import SessionParser, parser_arguments

# The command line: argparse and jsonargparse ----------------------------------------------------


def test_the_names_of_a_parser_are_its_options_its_commands_and_their_options():
    parser = argparse.ArgumentParser()
    parser.add_argument("-c", "--config")
    commands = parser.add_subparsers()
    commands.add_parser("fit").add_argument("--tag")
    assert option_names(parser) == {"h", "help", "c", "config", "fit", "tag"}


@pytest.fixture
def refusal(monkeypatch):
    """Lets jsonargparse refuse a command line; returns what is read from its message."""

    def refuse(*argv: str) -> Refusal:
        told = []

        def error(self, message, ex=None):
            if not self.exit_on_error:
                super(SessionParser, self).error(message, ex)
            told.append(Refusal.read(message, ex))
            raise SystemExit(2)

        monkeypatch.setattr(SessionParser, "error", error)
        monkeypatch.setattr(sys, "argv", ["cli.py"])
        with pytest.raises(SystemExit):
            LightningCLI(
                BaseModule,
                BaseDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                parser_class=SessionParser,
                parser_kwargs=parser_arguments(LightningCLI.subcommands()),
                args=["fit", *argv],
            )
        return told[-1]

    return refuse


CLASSES = ("--model=conftest.TinyModule", "--data=conftest.TinyData")


def test_an_unknown_option_is_read_from_the_message(refusal):
    found = refusal(*CLASSES, "--outputpath", "3")
    assert (found.unknown, found.is_option, found.class_path) == ("outputpath", True, "")


def test_an_unknown_key_of_a_file_is_read_from_the_message(refusal, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("tags: 3")
    found = refusal(*CLASSES, f"--config={path}")
    assert (found.unknown, found.is_option) == ("tags", False)


def test_an_unknown_argument_of_a_class_is_read_from_the_message(refusal):
    found = refusal(*CLASSES, "--data.n_worker=3")
    assert (found.unknown, found.class_path) == ("n_worker", "conftest.TinyData")
    assert found.message.startswith("`data`: ")


def test_a_setting_of_a_wrong_kind_is_read_from_the_message(refusal):
    message = refusal(*CLASSES, "--trainer.max_steps=many").message
    assert message == "`trainer.max_steps`: Expected a int. Got value: many"


def test_a_class_that_a_module_lacks_is_read_from_the_message(refusal):
    found = refusal("--model=conftest.TinyModel", CLASSES[1])
    assert found.message.startswith("`model`: ")
    assert found.lacks == ("conftest", "TinyModel")


def test_arguments_that_are_no_group_are_read_from_the_message(refusal, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("data: {class_path: conftest.TinyData, init_args: null}")
    assert "`init_args` must be a group" in refusal(f"--config={path}", CLASSES[0]).message


def test_a_missing_setting_is_read_from_the_message(refusal):
    assert refusal(CLASSES[0]).is_incomplete
    assert not refusal(*CLASSES, "--tagg=3").is_incomplete


def test_a_null_is_refused_by_the_words_that_are_looked_for():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--depth", type=int)
    with pytest.raises(TypeError, match=r"depth\":\s+Expected a <class 'int'>"):
        parser.validate(parser.parse_object({"depth": None}), skip_unset=False)


def test_the_root_cause_is_below_what_the_parser_says_of_each_type_and_no_deeper():
    own = ValueError("own")
    own.__cause__ = KeyError("a reason that the project itself gives")
    outer = ValueError("Does not validate against any of the Union subtypes")
    outer.__cause__ = own
    assert root_cause(outer) is own
    assert root_cause(own) is own
