"""Begins the messages that a command line asks for, and tells of the end of the run."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from lightning_trainer.base.scoring import describe_score
from lightning_trainer.commands.options import CommandParser
from lightning_trainer.report.log_line import format_duration
from lightning_trainer.report.notify import place_of
from lightning_trainer.session.folder import Session
from lightning_trainer.session.notices import Notifier, Wishes
from lightning_trainer.session.number import format_number
from lightning_trainer.session.run_record import RunRecord


def take_wishes(argv: Sequence[str]) -> tuple[Wishes, list[str]]:
    """As `Wishes.take`; a mistake is one message, and the end."""
    try:
        return Wishes.take(argv)
    except ValueError as ex:
        CommandParser(argv[0]).error(str(ex))


def begin_notifying(
    wishes: Wishes, session: Session, request: Any, stack: ExitStack
) -> Notifier | None:
    """Lets the stack tell of the end of a training, where messages are asked for."""
    if wishes == Wishes() or request.command != "fit":
        return None
    notifier = Notifier(wishes)
    stack.callback(_tell_end, notifier, session, request.settings["tag"])
    return notifier


def _tell_end(notifier: Notifier, session: Session, tag: str) -> None:
    """Tells by run.json how a run has ended, and waits until that is sent."""
    record = RunRecord.read(session.path)
    if record and record.state != "running":
        lines = [record.reason + (f" (by {record.by})" if record.by else "")]
        facts = {"ITERATION": str(record.iteration), "REASON": record.reason}
        if score := record.score:
            facts["SCORE"] = format_number(score["best"], 4)
            told = describe_score(score["name"], score["mode"])
            lines.append(f"{facts['SCORE']} at iteration {score['iteration']:,} ({told})")
        if elapsed_s := record.times.get("elapsed_s"):
            lines.append(f"{record.iteration:,} iterations in {format_duration(elapsed_s)}")
        lines += [str(session.path.absolute()), f"on {record.host}"]
        event = {"finished": "end", "failed": "failure"}.get(record.state, "interrupted")
        title = f"{tag}: {record.state}"
        notifier.tell(event, title, "\n".join(lines), {**facts, **place_of(session)})
    notifier.close()
