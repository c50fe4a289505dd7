"""Stops runs of random kinds at random places, goes on, and compares bitwise.

python benchmarks/stops.py --stops 300 --seed 0
python benchmarks/stops.py --case JSON             # one of them again
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from common import ROOT, report, table

_STOPS_A_CASE = 5
_TIMEOUT_S = 900


def run_processes(case: object, n_processes: int, folder: str) -> list[tuple[dict, str]]:
    """What became of each stop, by the first of the case's processes."""
    from forks import ForkedProcess

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        {"WORLD_SIZE": str(n_processes), "RANK": str(i), "LOCAL_RANK": str(i)}
        for i in range(n_processes)
    ]
    processes = [
        ForkedProcess(
            [sys.executable, str(ROOT / "tests/stops.py"), str(case), folder],
            env={**env, **(rank if n_processes > 1 else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ranks
    ]
    printed = [process.communicate(timeout=_TIMEOUT_S)[0] for process in processes]
    lines = [line for line in printed[0].splitlines() if line.startswith("RESULT ")]
    results = [tuple(json.loads(line.removeprefix("RESULT "))) for line in lines]
    if any(process.returncode for process in processes):
        results.append(({}, "failed:\n" + "\n".join("\n".join(printed).splitlines()[-25:])))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stops", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--processes", type=int, default=4, help="most of them")
    parser.add_argument("--case", help="as a failure has printed it")
    args = parser.parse_args()
    from forks import stop_server
    from stops import Case, Stop, draw_case, only

    generator, counts, failures = random.Random(args.seed), Counter(), []
    by_size, by_precision = Counter(), Counter()
    print(f"seed {args.seed}", flush=True)
    n_stops = 1 if args.case else args.stops
    while counts.total() < n_stops:
        n = min(_STOPS_A_CASE, n_stops - counts.total())
        case = Case.read(args.case) if args.case else draw_case(generator, n, args.processes)
        with tempfile.TemporaryDirectory() as folder:
            results = run_processes(case, case.n_processes, str(Path(folder, "case")))
        for stop, told in results:
            if told == "not reached":
                continue
            counts[case.kind, case.counting] += 1
            by_size[f"{case.n_processes}"] += 1
            by_precision[case.precision] += 1
            if told != "equal":
                one = only(case, Stop(**stop)) if stop else case
                failures.append(f"`--case '{json.dumps(asdict(one))}'`: {told}")
                print(failures[-1], flush=True)
        print(f"{counts.total()} stops, {len(failures)} not equal", flush=True)
        if args.case:
            break
    stop_server()
    if not args.case:
        _report(counts, by_size, by_precision, failures, args.seed)
    raise SystemExit(bool(failures))


def _report(
    counts: Counter, by_size: Counter, by_precision: Counter, failures: list[str], seed: int
) -> None:
    from stop_kinds import COUNTINGS, KINDS

    rows = [[kind, *(counts[kind, each] or "" for each in COUNTINGS)] for kind in KINDS]
    rows.append(["all", *(sum(counts[kind, each] for kind in KINDS) for each in COUNTINGS)])
    more = [
        ["number of processes", ", ".join(f"{n}: {by_size[n]}" for n in sorted(by_size))],
        ["precision", ", ".join(f"{name}: {n}" for name, n in sorted(by_precision.items()))],
    ]
    text = (
        f"{counts.total()} stops after a batch or in a validation, a third of them followed by "
        f"another one, drawn with seed {seed}; {counts.total() - len(failures)} went on bitwise: "
        "weights, optimisers, the scale of the loss, states of callbacks, metrics and the layer, "
        "position in the samples, all numbers of metrics.csv but timings, best.ckpt.\n\n"
        f"{table(['', *COUNTINGS], rows)}\n\n{table(['', 'stops'], more)}"
    )
    text += "".join(f"\n\nNot equal: {failure}" for failure in failures)
    report("Stops at random places", text)


if __name__ == "__main__":
    main()
