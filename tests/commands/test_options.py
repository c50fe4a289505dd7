"""A command line is taken apart once, the same way for every command."""

import pytest

from lightning_trainer.commands.options import CommandLine


@pytest.mark.parametrize(
    ("argv", "configs", "command", "others"),
    [
        ("fit --a 1 --config x --b", "x", "fit", "--a 1 --b"),
        ("fit -c x --a --config=y -c=z", "x y z", "fit", "--a"),
        ("--config x fit --a", "x", "fit", "--a"),
        ("fit x -c y", "y", "fit", "x"),
        ("fit", "", "fit", ""),
        ("", "", "", ""),
        ("--a fit", "", "", "--a fit"),
        ("fit --config", "", "fit", "--config"),  # the parser says what is missing
        ("fit --config --a 1", "", "fit", "--config --a 1"),
        ("fit --configs x", "", "fit", "--configs x"),
    ],
)
def test_config_files_are_told_from_the_rest_in_their_order(argv, configs, command, others):
    line = CommandLine.read(argv.split())
    assert (line.command, line.configs, line.others) == (command, configs.split(), others.split())


@pytest.mark.parametrize(
    ("argv", "path"),
    [
        ("fit --ckpt_path 1", "1"),
        ("fit --ckpt_path=1", "1"),
        ("fit --ckpt_path=x=y", "x=y"),
        ("fit --ckpt_path 1 -b 2 --ckpt_path 3", "3"),
        ("fit --ckpt_path=1 --ckpt_path=", ""),
        ("fit --ckpt_paths 1", ""),
        ("fit --ckpt_path", ""),
        ("fit --ckpt_path --a", ""),
    ],
)
def test_the_last_checkpoint_counts_and_stays_among_the_options(argv, path):
    line = CommandLine.read(argv.split())
    assert line.ckpt_path == path
    joined = " ".join(line.others).replace("path=", "path ")
    assert joined == argv.removeprefix("fit ").replace("path=", "path ")


def test_values_may_be_empty_or_have_spaces():
    line = CommandLine.read(["fit", "--config", "a b: c", "--ckpt_path", "", "--tag", ""])
    assert (line.configs, line.ckpt_path) == (["a b: c"], "")
    assert line.others == ["--ckpt_path=", "--tag", ""]
