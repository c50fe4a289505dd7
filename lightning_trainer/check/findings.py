"""What checks find, and what became of each check."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One mistake of a project."""

    kind: str  # tells the mistakes of one check apart, e.g. "double_softmax"
    certain: bool  # a fact of graph, data or settings; else a hint, which may be meant
    evidence: str  # with numbers, indices and names
    cause: str  # what is likely behind it
    remedy: str
    check: str = ""  # the check that found it; `run_checks` adds it

    @property
    def name(self) -> str:
        """What silences it, e.g. "activation/double_softmax"; so does the part before the slash."""
        return f"{self.check}/{self.kind}"


def certain(kind: str, evidence: str, cause: str, remedy: str) -> Finding:
    """Finds a fact, which makes the exit code 1."""
    return Finding(kind, True, evidence, cause, remedy)


def hint(kind: str, evidence: str, cause: str, remedy: str) -> Finding:
    """Finds what may be meant."""
    return Finding(kind, False, evidence, cause, remedy)


class CannotCheck(Exception):  # noqa: N818 - no error of the project
    """Why a check says nothing about this project."""


@dataclass
class CheckReport:
    """The outcome of all checks."""

    findings: list[Finding] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # of each check that ran to its end
    unable: dict[str, str] = field(default_factory=dict)  # checks that could not, and why
    silenced: dict[str, str] = field(default_factory=dict)  # findings by name, the project's reason
    needs: Any = None  # what a run needs, a `Needs`, where it was measured
    notes: list[str] = field(default_factory=list)  # how these checks differ from the run

    @property
    def certain(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.certain]


def some(items: Iterable[Any], n: int = 5) -> str:
    """The first few of some items, and how many more there are."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - n} more" if len(texts) > n else ""
    return ", ".join(texts[:n]) + more
