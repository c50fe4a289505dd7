"""How many planted mistakes `check` finds in the gallery, and what it says of healthy projects.

python benchmarks/check.py                            both tables, of all projects
python benchmarks/check.py --only digits,gan          those of some: the others' columns stay
python benchmarks/check.py --part healthy --seeds 5

A mistake is put into one project at a time, and counts as found if a finding has the expected name.
Only the checks of that name run then; a healthy project gets all of them.
"""

import argparse
import logging
import re
import time
import warnings

import check_data_mistakes  # noqa: F401 - the mistakes register themselves
import check_model_mistakes  # noqa: F401
import check_training_mistakes  # noqa: F401
import torch
from check_projects import GALLERY, MUTATIONS, NotApplicable, check, load
from common import RESULTS, report, table

from lightning_trainer.check.findings import CheckReport

PLANTED, HEALTHY = "check: planted mistakes", "check: healthy projects"
Cells = dict[tuple[str, str], str]  # by mistake and project


def attempt(project: str, mistake: str) -> str:
    """Returns "yes" if it is found, "" where the project has no place for it, else what is said."""
    expected, change = MUTATIONS[mistake]
    kind = load(project)
    try:
        change(kind)
        found = check(kind, {name.partition("/")[0] for name in expected})
    except Exception:  # NotApplicable, or a mistake with which no run would begin
        return ""
    seen = [finding.name for finding in found.findings]
    if expected & {*seen}:
        return "yes"
    reason = "; ".join(found.unable.values())
    # A run would end with such an error: no silent mistake.
    if not seen and reason.startswith((NotApplicable.__name__, "RuntimeError")):
        return ""
    print("      ", reason, flush=True)
    return f"no: {', '.join(seen)}" if seen else "no"


def planted(projects: list[str]) -> None:
    """Plants each mistake in each of these projects, and writes their columns."""
    for project in projects:
        cells = read_cells()
        for mistake in MUTATIONS:
            started_s = time.perf_counter()
            cells[mistake, project] = attempt(project, mistake)
            seconds = time.perf_counter() - started_s
            print(
                f"{project:14}{mistake:32}{seconds:5.1f} s  {cells[mistake, project]}", flush=True
            )
        report(PLANTED, planted_table(cells))


def planted_table(cells: Cells) -> str:
    """A row for each mistake, a column for each project."""
    projects = [name for name in GALLERY if any(project == name for _, project in cells)]
    rows = []
    for mistake, (expected, _) in MUTATIONS.items():
        row = [cells.get((mistake, project), "") for project in projects]
        rows.append([mistake, ", ".join(sorted(expected)), *row])
    columns = [[row[i] for row in rows] for i in range(2, 2 + len(projects))]
    rows.append(["found by name", "", *map(share, columns)])
    everything = share([cell for column in columns for cell in column])
    return f"{table(['mistake', 'finding', *projects], rows)}\n\nIn all {everything}."


def share(cells: list[str]) -> str:
    n, n_found = sum(map(bool, cells)), cells.count("yes")
    return f"{n_found} of {n} ({n_found / max(n, 1):.0%})"


def read_rows(title: str) -> list[list[str]]:
    """The cells of a table in RESULTS.md, its head first; empty if it is not there."""
    pattern = rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)"
    found = re.search(pattern, RESULTS.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for line in (found[1] if found else "").splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if set(row[0]) != {"-"}]


def read_cells() -> Cells:
    """What is known of each mistake in each project."""
    rows = read_rows(PLANTED)
    head = rows[0] if rows else []
    return {
        (row[0], head[i]): row[i]
        for row in rows[1:]
        for i in range(2, len(head))
        if row[0] in MUTATIONS and head[i] in GALLERY
    }


def healthy(projects: list[str], n_seeds: int) -> None:
    """Checks projects without a mistake, and writes their rows."""
    for project in projects:
        rows = {row[0]: row for row in read_rows(HEALTHY)[1:]}
        rows[project] = healthy_row(project, n_seeds)
        head = ["project", "seeds", "certain", "hints", "checks that raised", "seconds"]
        report(HEALTHY, table(head, [rows[name] for name in GALLERY if name in rows]))


def healthy_row(project: str, n_seeds: int) -> list[str]:
    reports: list[CheckReport] = []
    seconds: list[float] = []
    for seed in range(n_seeds):
        started_s = time.perf_counter()
        reports.append(check(load(project), seed=seed))
        seconds.append(time.perf_counter() - started_s)
        said = [finding.name for finding in reports[-1].findings]
        print(f"{project:14}seed {seed} {seconds[-1]:5.1f} s", said, reports[-1].unable, flush=True)
    findings = [finding for each in reports for finding in each.findings]
    certain = ", ".join(finding.name for finding in findings if finding.certain)
    hints = ", ".join(finding.name for finding in findings if not finding.certain)
    raised = sum(".py:" in text for each in reports for text in each.unable.values())
    took = f"{min(seconds):.1f} to {max(seconds):.1f}"
    return [project, str(n_seeds), certain or "-", hints or "-", str(raised), took]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("planted", "healthy", "both"), default="both")
    parser.add_argument("--only", default=",".join(GALLERY), help="projects, by commas")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for project in given.only.split(","):
        if given.part != "planted":
            healthy([project], given.seeds)
        if given.part != "healthy":
            planted([project])


if __name__ == "__main__":
    main()
