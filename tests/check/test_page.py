"""docs/check.md tells of each check and of each of its findings, and of no other."""

import ast
import re

from conftest import ROOT

from lightning_trainer.check.catalogue import CHECKS


def kinds() -> set[str]:
    """The first argument of each finding that the checks make."""
    found = set()
    for path in (ROOT / "lightning_trainer/check").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) in ("certain", "hint", "make")
                and node.args
            ):
                names = [n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant)]
                found |= {name for name in names if isinstance(name, str)}
    return found


def test_the_page_has_each_check_in_its_order_with_code_and_a_source():
    text = (ROOT / "docs/check.md").read_text()
    sections = re.findall(r"^### `(\w+)`\n(.*?)(?=^### |^## )", text, re.M | re.S)
    assert [name for name, _ in sections] == [*CHECKS]
    for name, section in sections:
        assert "```" in section, name
        assert "Source" in section or name == "settings", name


def test_the_page_has_each_finding():
    text = (ROOT / "docs/check.md").read_text()
    found = {*re.findall(r"`(\w+)`\s?[ :,(]?", text)}
    assert kinds() <= found
