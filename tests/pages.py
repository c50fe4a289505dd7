"""The pages of the documents: README.md and docs/, and what stands in their fenced blocks."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"(?:^ *<!-- ([\w ]+) -->\n)?^( *)```(\w*)\n(.*?)^\2```$", re.M | re.S)
_PROGRAM = r"(?:python cli\.py|python -m lightning_trainer|lightning-trainer)"
_COMMAND = re.compile(rf"(?:^|&& |; |: |# ){_PROGRAM} (.*)")
_IN_PROSE = re.compile(rf"`{_PROGRAM} ([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line where it begins, the comment before it, its text."""

    page: Path
    line: int
    mark: str
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page; one of commands is "bash", whether it says so or not."""
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        mark, _, language, body = match.groups()
        if not language and re.match(rf"{_PROGRAM} |pip ", body):
            language = "bash"
        line = text[: match.start()].count("\n") + 1
        found.append(Block(page, line, mark or "", language, body))
    return found


def of_language(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language in languages]


def block_after(page: str, mark: str) -> str:
    """The text of the block that follows an HTML comment, on a page such as "docs/start.md"."""
    [text] = [block.text for block in blocks(ROOT / page) if block.mark == mark]
    return text


def commands(*pages: str) -> list[tuple[str, ...]]:
    """The words after the program's name in each command of some pages, or of all.

    Commands of blocks and those between backticks in the text.
    """
    found: list[str] = []
    for page in [ROOT / name for name in pages] or PAGES:
        for block in blocks(page):
            lines = block.text.replace("\\\n", " ").splitlines()
            if block.language == "bash":
                found += [match[1] for line in lines if (match := _COMMAND.search(line.strip()))]
        prose = _FENCE.sub("", page.read_text()).replace("\n", " ")
        found += _IN_PROSE.findall(prose)
    return [*dict.fromkeys(map(_words, found))]


def _words(command: str) -> tuple[str, ...]:
    """Without a comment, and without what the shell does with it."""
    command = re.sub(r"\$\w+", "1", command) if "'" not in command else command
    words = shlex.split(command, comments=True)
    ends = (i for i, word in enumerate(words) if word in (">", "|", "&", "&&", ";", ";;"))
    return tuple(word.rstrip(";") for word in words[: next(ends, len(words))])
