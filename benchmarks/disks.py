"""Fails file operations of real runs one after the other, goes on, and compares bitwise.

python benchmarks/disks.py --faults 600 --seed 0
python benchmarks/disks.py --fault "write last.ckpt 3 ENOSPC on"      # one of them again

Needs Linux and a C compiler: a library that is loaded before the system's own lets the operations
fail (tests/failing_disk.c).
"""

import argparse
import random
import shutil
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import report, table

_OUTCOMES = ("went on", "ended", "LOST")


def _draw(faults: list, n: int, seed: int) -> list:
    """Some of each operation on each kind of file, and as many others as are left."""
    generator = random.Random(seed)
    generator.shuffle(faults)
    first = {(fault.operation, fault.kind): fault for fault in faults}.values()
    others = [fault for fault in faults if fault not in first]
    return [*first, *others][:n]


def _text(counts: dict[tuple[str, str], Counter]) -> str:
    """A table of kinds of file and errors: went on / ended with a message / lost."""
    errors = sorted({error for _, error in counts})
    rows = []
    for kind in dict.fromkeys(kind for kind, _ in sorted(counts)):
        cells = [counts.get((kind, error)) for error in errors]
        shown = [" / ".join(str(c[o]) for o in _OUTCOMES) if c else "" for c in cells]
        total: Counter = sum(filter(None, cells), Counter())
        rows.append([kind, *shown, " / ".join(str(total[o]) for o in _OUTCOMES)])
    total = sum(counts.values(), Counter())
    rows.append(["all", *[""] * len(errors), " / ".join(str(total[o]) for o in _OUTCOMES)])
    return table(["", *errors, "all"], rows)


def main() -> None:
    from disks import Fault, all_faults, fit_on, operations, survive
    from forks import stop_server
    from restarts import result

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="runs at the same time")
    parser.add_argument("--fault", help="operation, kind of file, number, error, once or on")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = fit_on(folder / "whole", log=folder / "operations.txt")
        whole, done = result(run.session), operations(folder / "operations.txt")
        faults = _draw(all_faults(done, each=4), arguments.faults, arguments.seed)
        if arguments.fault:
            operation, *kind, number, error, lasts = arguments.fault.split()
            faults = [Fault(operation, " ".join(kind), int(number), error, lasts == "on")]

        def try_one(i: int) -> tuple[Fault, str]:
            told = survive(faults[i], folder / str(i), whole)
            shutil.rmtree(folder / str(i), ignore_errors=True)
            return faults[i], told

        counts: dict[tuple[str, str], Counter] = {}
        with ThreadPoolExecutor(arguments.workers) as pool:
            for n, (fault, told) in enumerate(pool.map(try_one, range(len(faults))), start=1):
                outcome = next(o for o in _OUTCOMES if told.startswith(o))
                counts.setdefault((fault.kind, fault.error), Counter())[outcome] += 1
                words = fault.operation, fault.kind, fault.number, fault.error
                print(n, *words, "on" if fault.lasts else "once", "-", outcome, flush=True)
                if outcome == "LOST" or arguments.fault:
                    print(told, flush=True)
        stop_server()
    if not arguments.fault:
        text = (
            f"{len(faults)} faults, one a run of 11 iterations, of {sum(done.values())} operations "
            "on the session's files: the run went on and was bitwise the one that never failed / "
            "it ended with a message, and was so after going on / lost.\n\n" + _text(counts)
        )
        report("File operations that fail", text)


if __name__ == "__main__":
    main()
