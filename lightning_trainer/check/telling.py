"""The report of the checks, as text and as JSON."""

import json
import textwrap
from dataclasses import asdict
from typing import Any

from lightning_trainer.check.findings import CheckReport, Finding

_WIDTH = 100


def format_text(report: CheckReport, module: str) -> str:
    """For people; `module` is the name of the class that can silence a finding."""
    blocks = [_format_finding(finding) for finding in report.findings]
    n_certain, n = len(report.certain), len(report.findings)
    seconds = sum(report.seconds.values())
    total = (
        f"{_count(n_certain, 'certain mistake')}, {_count(n - n_certain, 'hint')}; "
        f"{len(report.seconds)} checks in {seconds:.0f} s: {', '.join(report.seconds)}"
    )
    lines = [*textwrap.wrap(total, _WIDTH, subsequent_indent="    ")]
    if report.unable:
        lines.append("Not checked:")
        for name, why in report.unable.items():
            lines += textwrap.wrap(
                f"{name}: {why}", _WIDTH, initial_indent="    ", subsequent_indent=" " * 8
            )
    lines += [f"Silenced: {name} ({reason})" for name, reason in report.silenced.items()]
    lines += [f"Note: {note}" for note in report.notes]
    if report.findings:
        name = report.findings[0].name
        lines.append(f'To silence one: `silenced_checks = {{"{name}": "the reason"}}` in {module}')
    return "\n\n".join([*blocks, "\n".join(lines)])


def _format_finding(finding: Finding) -> str:
    level = "CERTAIN" if finding.certain else "HINT   "
    parts = {f"{level} {finding.name}": finding.evidence}
    parts |= {"        likely": finding.cause, "        remedy": finding.remedy}
    lines: list[str] = []
    for title, text in parts.items():
        lines += textwrap.wrap(
            f"{title}: {text}", _WIDTH, subsequent_indent=" " * 16, break_on_hyphens=False
        )
    return "\n".join(lines)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' if n != 1 else ''}"


def format_json(report: CheckReport) -> str:
    """One object: findings, seconds, unable, silenced, needs, notes."""
    content: dict[str, Any] = asdict(report)
    pairs = zip(content["findings"], report.findings, strict=True)
    content["findings"] = [{"name": finding.name, **fields} for fields, finding in pairs]
    return json.dumps(content, indent=2)
