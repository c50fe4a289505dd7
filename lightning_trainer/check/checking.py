"""Runs the checks of a project one after the other."""

import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from lightning_trainer.check.findings import CannotCheck, CheckReport, Finding
from lightning_trainer.check.limits import kept_generators
from lightning_trainer.check.project import LIMIT_S, Project

Check = Callable[[Project], Iterable[Finding]]


def run_checks(project: Project, checks: Mapping[str, Check], own: bool = True) -> CheckReport:
    """Runs them, in their order, and with `own` those that `checks` of the module lists.

    A check that raises finds nothing, and the report says why.
    """
    report = CheckReport(findings=project.found)
    reasons = dict(getattr(project.module, "silenced_checks", None) or {})
    added = getattr(project.module, "checks", ()) if own else ()
    for name, check in {**checks, **{check.__name__: check for check in added}}.items():
        if project.is_late:
            report.unable[name] = f"the {LIMIT_S:.0f} s of all checks together were over"
            continue
        started_s = time.perf_counter()
        try:
            with warnings.catch_warnings(), kept_generators():
                warnings.simplefilter("ignore")
                for found in check(project):
                    finding = replace(found, check=name)
                    reason = reasons.get(finding.name, reasons.get(name))
                    if reason is None:
                        report.findings.append(finding)
                    else:
                        report.silenced[finding.name] = str(reason)
            report.seconds[name] = time.perf_counter() - started_s
        except CannotCheck as ex:
            report.unable[name] = str(ex)
        except Exception as ex:
            place = traceback.extract_tb(ex.__traceback__)[-1]
            text = " ".join(str(ex).split())[:200]
            where = f"{Path(place.filename).name}:{place.lineno}"
            report.unable[name] = f"{type(ex).__name__}: {text} ({where})"
    return report
