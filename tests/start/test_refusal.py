"""What an error of jsonargparse says is read from the wording of its message."""

import sys

import pytest
from lightning.pytorch.cli import LightningCLI

from lightning_trainer.base.data import BaseDataModule
from lightning_trainer.base.module import BaseModule
from lightning_trainer.start.parser import SessionParser, parser_arguments
from lightning_trainer.start.refusal import Refusal


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
                parser_kwargs=parser_arguments("fit"),
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
