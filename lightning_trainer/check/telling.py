"""The report of the checks, as text and as JSON."""

import json
import math
import textwrap
from dataclasses import asdict
from typing import Any

from lightning_trainer.check.findings import CheckReport, Finding
from lightning_trainer.check.needs import Needs

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
    for line in (
        *(f"Silenced: {name} ({reason})" for name, reason in report.silenced.items()),
        *(f"Note: {note}" for note in report.notes),
    ):
        lines += textwrap.wrap(line, _WIDTH, subsequent_indent="    ")
    if report.needs:
        lines += ["", *_format_needs(report.needs)]
    if report.findings:
        name = report.findings[0].name
        lines.append(f'To silence one: `silenced_checks = {{"{name}": "the reason"}}` in {module}')
    return "\n\n".join([*blocks, "\n".join(lines)])


def _format_needs(needs: Needs) -> list[str]:
    """What a run needs, a line for each part that is known."""
    rows: dict[str, str] = {}
    if needs.update_ms is not None:
        data = ", ".join(f"{_ms(ms)} with {n}" for n, ms in needs.data_ms.items())
        text = f"{_ms(needs.update_ms)} ms; data {data} workers, each batch" if data else ""
        rows["update"] = text or f"{_ms(needs.update_ms)} ms"
    if needs.workers is not None:
        rows["take"] = f"`--data.n_workers {needs.workers}`"
    if needs.iteration_ms and needs.run_s is not None:
        n = f"{needs.n_iterations:,.0f}"
        rows["run"] = f"{n} iterations of {_ms(needs.iteration_ms)} ms: {_duration(needs.run_s)}"
    if needs.validation_s is not None and needs.first_validation is not None:
        first = needs.first_validation
        after = (
            f", after {_duration(first * needs.iteration_ms / 1e3)}" if needs.iteration_ms else ""
        )
        at = f"the first at iteration {first:,.0f}{after}" if first < math.inf else "none"
        rows["validation"] = f"{_duration(needs.validation_s)} each, {at}, the last at the end"
    rows["memory"] = f"{needs.memory_mib:,.0f} MiB at most, so far"
    rows["disk"] = (
        f"{needs.checkpoint_mib:,.1f} MiB a checkpoint, {needs.session_mib:,.1f} MiB a session; "
        f"{needs.free_mib:,.0f} MiB are free"
    )
    rows["going on"] = "; ".join(needs.inexact) or "nothing known that would make it inexact"
    lines = ["What a run needs, measured now:"]
    for title, text in rows.items():
        lines += textwrap.wrap(f"    {title:10} {text}", _WIDTH, subsequent_indent=" " * 15)
    return lines


def _ms(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def _duration(seconds: float) -> str:
    """E.g. "0.3 s", "12 min", "7.5 h"."""
    if seconds == math.inf:
        return "without end"
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


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
    """One object: findings, seconds, unable, silenced, needs, notes; null for what has no end."""
    content: dict[str, Any] = asdict(report)
    pairs = zip(content["findings"], report.findings, strict=True)
    content["findings"] = [{"name": finding.name, **fields} for fields, finding in pairs]
    return json.dumps(_finite(content), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    """With None in place of numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
