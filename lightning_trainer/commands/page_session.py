"""A session's section of a report."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_trainer.commands.columns import score_of, shown_clock, shown_number
from lightning_trainer.commands.page import Html, element, folded, join, picture, table
from lightning_trainer.commands.page_pictures import Picture, read_pictures
from lightning_trainer.commands.page_texts import (
    read_environment,
    read_failure,
    read_log,
    read_start,
    shown_settings,
    within,
)
from lightning_trainer.session.folder import go_on_command, look_command
from lightning_trainer.session.record import FINISHED, Record
from lightning_trainer.session.run_record import RunRecord

_PARTS_OF_TIME = ("data", "update", "validation", "checkpoints")
_LONGEST = 1000  # characters of a fact
_HINTS = {
    "data": "waiting for batches",
    "update": "forward, backward, optimiser",
    "other": "start of training, log lines, hooks",
}


@dataclass(frozen=True)
class Limits:
    """What of a session finds room on the page, in bytes."""

    pictures: int
    text: int


def session_section(record: Record, label: str, limits: Limits, is_open: bool) -> Html:
    """All that a report says of one session."""
    run, most = RunRecord.read(record.path), limits.text // 8
    warnings, end_of_log = read_log(record.path, most)
    settings, environment = shown_settings(record.settings), read_environment(record.path)
    parts = [
        _facts(record, run),
        _time(run.times if run else {}),
        _warnings(warnings, read_failure(record.path)[:most]),
        _pictures(read_pictures(record.path, record.best_iteration, limits.pictures)),
        _commands(record),
        folded("Settings", table(("setting", "value"), within(settings, 2 * most))),
        folded("Environment", table(("", ""), within(environment, most))),
        _text_of("Packages", record, "packages.txt", most),
        _text_of("Uncommitted changes", record, "uncommitted.patch", min(3 * most, 200_000)),
        folded("End of the log", element("pre", end_of_log)) if end_of_log else Html(),
    ]
    title = join([element("b", label), " ", element("span", record.state, class_=record.state)])
    return folded(title, *parts, is_open=is_open, class_="session")


def _facts(record: Record, run: RunRecord | None) -> Html:
    done = f"{record.iteration:,}" if record.iteration is not None else "?"
    of = f" of {record.max_steps:,}" if record.max_steps else ""
    why = f": {run.reason}" if run and run.reason else ""
    by = f" (by {run.by})" if run and run.by else ""
    best = shown_number(record.best_score)
    at = f" at iteration {record.best_iteration:,}" if record.best_iteration is not None else ""
    speed = record.examples_per_s
    facts = {
        "State": f"{record.state}{why}{by}",
        "Iterations": f"{done}{of}",
        "Best score": f"{best}{at}, {_direction(record)}" if best else "none yet",
        "Time in training": shown_clock(record.hours),
        "Examples/s": f"{speed:,.1f}" if speed else None,
        "Used": _used(run.used if run else None),
        "Started": record.started.replace("T", " "),
        "Commit": record.commit,
        "Folder": str(record.path),
        "Damaged": "; ".join(record.damage),
    }
    pairs = [join([element("dt", k), element("dd", v[:_LONGEST])]) for k, v in facts.items() if v]
    return element("dl", *pairs)


def _direction(record: Record) -> str:
    """E.g. "accuracy, higher is better"."""
    name = (score_of(record) or "").partition(" (")[0]
    better = {"max": ", higher is better", "min": ", lower is better"}
    return name + better.get(record.score_mode or "", "")


def _used(used: Mapping[str, Any] | None) -> str:
    units = {"memory_gb": "GB of memory", "gpu_memory_gb": "GB of GPU memory"}
    units |= {"gpu_percent": "% of the GPU's time", "gpu_kwh": "kWh by the GPU"}
    known = {name: (used or {}).get(name) for name in units}
    return ", ".join(f"{v:g} {units[k]}" for k, v in known.items() if isinstance(v, int | float))


def _time(times: Mapping[str, Any]) -> Html:
    """A bar of how the time in training was spent."""
    spent = {name: times.get(f"{name}_s") for name in _PARTS_OF_TIME}
    known = {name: v for name, v in spent.items() if isinstance(v, int | float) and v >= 0}
    elapsed = times.get("elapsed_s")
    whole = max(elapsed if isinstance(elapsed, int | float) else 0, sum(known.values()))
    if not 0 < whole < float("inf"):
        return Html()
    known["other"] = max(whole - sum(known.values()), 0)
    bar, legend = [], []
    for name, seconds in known.items():
        share = seconds / whole
        bar.append(element("i", class_=name, style=f"flex-grow: {share:.4f}"))
        told = f" {name} {share:.0%} ({_duration(seconds)})"
        title = _HINTS.get(name, "")
        legend.append(element("span", element("i", class_=name), told, title=title))
    parts = element("p", *legend, class_="legend")
    return join([element("h3", "Time"), element("div", *bar, class_="bar"), parts])


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(shown_clock(seconds / 3600))


def _warnings(warnings: list[tuple[str, int]], failure: str) -> Html:
    lines = [element("li", text, f" ({n} times)" if n > 1 else "") for text, n in warnings]
    told = element("ul", *lines) if lines else element("p", "The log has no warnings.")
    failed = join([element("h3", "Failure"), element("pre", failure)]) if failure else Html()
    return join([failed, element("h3", "Warnings of the log"), told])


def _pictures(pictures: list[Picture]) -> Html:
    if not pictures:
        return Html()
    shown = []
    for each in pictures:
        at = f", iteration {each.iteration:,}" if each.iteration is not None else ""
        name = f"{each.name.replace('_', ' ')}{at}"
        image = picture(each.content, each.kind, name)
        shown.append(element("figure", image, element("figcaption", name)))
    return join([element("h3", "Pictures"), element("div", *shown, class_="pictures")])


def _commands(record: Record) -> Html:
    path = record.path
    more = " --trainer.max_steps N" if record.state == FINISHED else ""
    lines = [
        f"{go_on_command('fit', path)}{more}    # goes on",
        f"{go_on_command('test', path)}    # scores its best checkpoint",
        f"{look_command(path)}    # TensorBoard",
    ]
    return join([element("h3", "Commands"), element("pre", "\n".join(lines), class_="commands")])


def _text_of(title: str, record: Record, name: str, most_bytes: int) -> Html:
    text, rest = read_start(record.path / name, most_bytes)
    if not text:
        return Html()
    more = element("p", f"{rest:,} more bytes are in {name}.") if rest else Html()
    shown = _changes(text) if name.endswith(".patch") else text
    return folded(title, element("pre", shown), more)


def _changes(patch: str) -> Html:
    """A patch with what is added and what is left out as such."""
    kinds = {"+": "ins", "-": "del"}
    parts = []
    for sign, lines in itertools.groupby(patch.splitlines(), lambda line: line[:1]):
        text = "".join(f"{line}\n" for line in lines)
        parts.append(element(kinds[sign], text) if sign in kinds else text)
    return join(parts)
