"""The pages of the documents hold together: blocks, options, links, extras, contents."""

import ast
import inspect
import os
import re
import subprocess
import textwrap
from functools import cache
from pathlib import Path

import lightning.pytorch as pl
import pytest
import yaml
from pages import PAGES, ROOT, Block, block_after, blocks, commands, of_language

from lightning_trainer import BaseDataModule, BaseModule
from lightning_trainer.commands.registry import COMMANDS
from lightning_trainer.start.parser import SESSION_OPTIONS

# Blocks of Python that this file only compiles, and why: for a page all, for a place those there.
NOT_RUN_HERE = {
    "README.md": "the sample: it is projects/digits, which tests/test_readme.py runs",
    "check.md": "parts of projects with a mistake; tests/check/cases has them whole",
    "gpus.md": "needs several GPUs",
    "hooks.md": "run by tests/test_hooks_page.py",
    "porting.md": "run by tests/projects/test_porting.py",
    "recipes.md": "run by tests/test_recipes.py",
    "speed.md": "a line of projects/cifar; tests/images/test_in_memory.py calls it",
    "python.md": "run by tests/test_python_page.py",
}
LANGUAGES = {"", "bash", "python", "yaml", "toml", "text", "json", "markdown"}


def of(block: Block) -> str:
    return block.place


def test_each_block_has_a_language_that_is_known():
    odd = [b.place for page in PAGES for b in blocks(page) if b.language not in LANGUAGES]
    assert odd == []


def test_shell_blocks_are_shell():
    for block in of_language("bash"):
        script = block.text.replace("...", "x")
        done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, (block.place, done.stderr)


@pytest.mark.parametrize("block", of_language("python"), ids=of)
def test_a_block_of_python_is_python_and_one_that_no_other_test_runs_runs(
    block, tmp_path, monkeypatch
):
    tree = ast.parse(textwrap.dedent(block.text))
    if block.page.name not in NOT_RUN_HERE:
        monkeypatch.chdir(tmp_path)
        exec(compile(tree, block.place, "exec"), {"__name__": "page"})


@pytest.mark.parametrize("block", of_language("yaml"), ids=of)
def test_blocks_of_settings_can_be_read(block):
    assert yaml.safe_load(block.text)


def test_every_command_that_the_pages_name_exists():
    assert {words[0] for words in commands()} - {"--help", "--version"} <= {*COMMANDS}


def test_the_options_that_the_pages_name_exist():
    projects = "".join(path.read_text() for path in ROOT.glob("projects/*/*.py"))
    templates = "".join(p.read_text() for p in ROOT.glob("lightning_trainer/**/*.txt"))
    known = {
        "trainer": {*inspect.signature(pl.Trainer).parameters},
        "model": {*inspect.signature(BaseModule).parameters, "help"},
        "data": {*inspect.signature(BaseDataModule).parameters, "help"},
    }
    for page in PAGES:
        text = re.sub(r"```python.*?```", "", page.read_text(), flags=re.S)  # mistakes on purpose
        for group, name in re.findall(r"--(trainer|model|data)\.(\w+)", text):
            own = group != "trainer" and re.search(rf"\b{name}: ", projects + templates)
            assert name in known[group] or own or name == "NAME", (page.name, group, name)


def test_the_page_of_the_configuration_has_every_key():
    text = (ROOT / "docs/configuration.md").read_text()
    keys = [*(option[0] for option in SESSION_OPTIONS), "seed_everything"]
    keys += [f"model.{name}" for name in inspect.signature(BaseModule).parameters]
    keys += [f"data.{name}" for name in inspect.signature(BaseDataModule).parameters]
    keys += [*inspect.signature(pl.Trainer).parameters]
    assert [key for key in keys if f"`{key}`" not in text] == []
    assert (
        block_after("docs/configuration.md", "a config")
        == (ROOT / "configs/digits.yaml").read_text()
    )


def test_the_extras_that_the_pages_name_exist():
    project = (ROOT / "pyproject.toml").read_text().partition("optional-dependencies]")[2]
    extras = {*re.findall(r"^(\w+) = \[", project.partition("\n[")[0], re.M)}
    text = "".join(page.read_text() for page in PAGES)
    named = re.findall(r"(?:pip install -e \"?|lightning_trainer|whl)\.?\[([\w,]+)\]", text)
    assert named
    assert {name for names in named for name in names.split(",")} <= extras


@cache
def anchors(page: Path) -> set[str]:
    """The names of a page's titles in links, as code hosts and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_of_a_page_leads_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short_and_introduces_the_guide_where_it_names_it():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    first = text.index("guide")
    assert text[:first].endswith("*Research workflow*, a ")


def test_the_site_has_every_page():
    """In its contents. Whether the site can be built is tried by `mkdocs build --strict`."""
    named = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2])
    assert sorted(named) == sorted(
        [
            *(page.name for page in PAGES[1:]),
            "index.md",
            "results.md",
            "changelog.md",
            "contributing.md",
        ]
    )


def test_commands_on_a_free_gpu_have_one_each_and_give_it_back(tmp_path):
    env = {**os.environ, "GPUS": "4 7", "LOCKS": str(tmp_path)}
    command = ["bash", ROOT / "scripts/on_free_gpu.sh", "bash", "-c"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": env}
    tell = "echo $CUDA_VISIBLE_DEVICES; read"
    with subprocess.Popen([*command, tell], **pipes) as first:
        assert first.stdout.readline() == "4\n"
        with subprocess.Popen([*command, tell], **pipes) as second:
            assert second.stdout.readline() == "7\n"
            first.communicate("\n")
            assert subprocess.check_output([*command, tell], env=env, input=b"\n") == b"4\n"
            second.communicate("\n")
