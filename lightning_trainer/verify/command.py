"""Proves that a project's restarts are exact: python cli.py verify --config configs/digits.yaml."""

import argparse
import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning_trainer.commands.options import CommandLine, CommandParser
from lightning_trainer.session.secrets import hide, secret_texts
from lightning_trainer.session.settings import read_yaml
from lightning_trainer.verify.comparison import Comparison, compare_bitwise, read_trail, shorten
from lightning_trainer.verify.kills import Run, draw_moments

_DESCRIPTION = """\
Proves that a restart of your project is exact: trains a few iterations, trains them again in a run
that is killed at several moments and goes on each time, and compares the two bitwise. Says what
differs first, and the usual causes. Takes the options of `fit`, which win over its own:

    {settings}

With `--trainer.max_epochs N` it trains N epochs, which are killed at their ends as well.
Exit code: 0 if all is equal, 1 if not or if a run fails, 2 if the command line is wrong.
"""

_SETTINGS = (
    "--tag=verify",
    "--save_minutes=0",  # as often as possible, for little repetition after a kill
    "--trainer.max_steps=20",
    "--trainer.log_every_n_steps=4",
    "--trainer.val_check_interval=8",
    "--trainer.check_val_every_n_epoch=null",  # else the interval must fit into an epoch
    "--trainer.limit_val_batches=4",
)

_BY_EPOCHS = {
    # option that is given: options of the above that others replace
    "max_epochs": {"max_steps": "-1"},
    "check_val_every_n_epoch": {"val_check_interval": "1.0"},
}

_NOT_DETERMINISTIC = (
    "kernels that are not deterministic: try again with `--trainer.deterministic true`"
)

_STATE = "give it `state_dict` and `load_state_dict`"
_OWN_LOADER = f"leave it to `BaseDataModule`, or {_STATE}"
# The usual causes, by the first difference; "files" where the batches are equal.
_CAUSES = {
    "order": (f"a data loader of your own that starts again from its beginning: {_OWN_LOADER}",),
    "samples": (
        f"a data loader of your own: {_OWN_LOADER}",
        "a dataset or transform with a random generator of its own, or any other state: draw from "
        "torch, numpy.random or random, which are seeded for each sample",
    ),
    "draws": (
        "a dataset or transform with a random generator of its own, or any other state: draw from "
        "torch, numpy.random or random, which are seeded for each sample",
    ),
    "before": (
        "a hook between two steps that reads a Python attribute or a generator of its own: make it "
        "a buffer, or save it in `on_save_checkpoint`; draw from torch, numpy.random or random",
    ),
    "loss": (
        "state that no checkpoint holds (a counter, a list, a random generator of the module's "
        "own): make it a buffer, or save it in `on_save_checkpoint`",
        _NOT_DETERMINISTIC,
    ),
    "weights": (
        f"an optimiser, a scheduler or a callback with state that no checkpoint holds: {_STATE}",
        _NOT_DETERMINISTIC,
    ),
    "scores": (
        "validation data or metrics with state of their own, such as a random generator",
        _NOT_DETERMINISTIC,
    ),
    "before any restart": (
        "a random generator that is not seeded, e.g. `np.random.default_rng()`; the time; the "
        "order of a set or of `os.listdir`",
        _NOT_DETERMINISTIC,
    ),
    "files": (f"a callback, logger or scheduler with state that no checkpoint holds: {_STATE}",),
}


def verify(argv: list[str]) -> int:
    """Runs the command with options of `fit`; returns its exit code."""
    parser = CommandParser(
        "verify",
        usage="%(prog)s --config FILE [--OPTION VALUE ...]",
        description=_DESCRIPTION.format(settings="\n    ".join(_SETTINGS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_known_args(argv)  # for `--help`
    if CommandLine.read(argv).ckpt_path:
        parser.error("`verify` takes no `--ckpt_path`: it makes sessions of its own, leave it out")
    if not argv:
        parser.error("`verify` needs to know the project: give `--config FILE`")
    folder, secrets = Path(tempfile.mkdtemp(prefix="verify_")), _secrets(argv)
    code = 1
    try:
        with _end_by_signals():
            code = _compare_runs(argv, folder, parser)
    except SystemExit:  # refused by the parser
        code = 2
        raise
    except subprocess.CalledProcessError as ex:
        print(hide(ex.output, secrets), file=sys.stderr)
        code = 2 if (ex.cmd, ex.returncode) == ("fit", 2) else 1  # refused its options
        if code == 1:
            print(f"error: `{ex.cmd}` ended with exit code {ex.returncode}", file=sys.stderr)
    except BrokenPipeError:  # `| head` has ended
        code = 128 + signal.SIGPIPE
    except KeyboardInterrupt as ex:
        code = 128 + (ex.args[0] if ex.args else signal.SIGINT)
    finally:
        if code == 1:
            for path in folder.glob("*/output.txt"):
                shown = hide(path.read_text("utf-8", "surrogateescape"), secrets)
                path.write_text(shown, "utf-8", "surrogateescape")
            print(f"Kept, with all that the runs printed: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)  # killed processes may still be ending
    return code


def _secrets(argv: list[str]) -> list[str]:
    """The secrets of the options and config files, which `fit` will read."""
    line = CommandLine.read(argv)
    options = [{name: value} for name, value in pairwise(line.others) if "=" not in name]
    options += [{name: value} for name, _, value in (word.partition("=") for word in line.others)]
    return secret_texts([*options, *(read_yaml(Path(name)) for name in line.configs)])


@contextlib.contextmanager
def _end_by_signals() -> Iterator[None]:
    """Lets the signals of schedulers and terminals end it as Ctrl-C does, with what it started."""

    def end(number: int, _: Any) -> None:
        raise KeyboardInterrupt(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as `nohup` leaves it
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _settings(argv: list[str]) -> list[str]:
    """Its own options of `fit`, by those that are given: they win, and may count by epochs."""
    given = {word.partition("=")[0].removeprefix("--trainer.") for word in argv}
    settings = dict(option.split("=", 1) for option in _SETTINGS)
    for option, replaced in _BY_EPOCHS.items():
        if option in given:
            settings |= {f"--trainer.{name}": value for name, value in replaced.items()}
    return [f"{name}={value}" for name, value in settings.items()] + argv


def _compare_runs(argv: list[str], folder: Path, parser: CommandParser) -> int:
    """Trains twice, compares, and prints the findings; returns the exit code.

    Raises:
        subprocess.CalledProcessError: If a run fails.
    """
    started_s = time.perf_counter()

    def report(text: str) -> None:
        print(f"{time.perf_counter() - started_s:4.0f} s  {text}", flush=True)

    options = _settings(argv)
    report("train without interruption")
    reference = Run(folder / "reference", options, report).finish()
    moments = draw_moments(reference)
    if not moments or not (reference / "checkpoints/last.ckpt").exists():
        parser.error("nothing to verify: the run has too few iterations or no checkpoints")
    n_iterations = read_trail(reference / "trail_rank0.jsonl")[-1]["iteration"]
    report(f"ended at iteration {n_iterations}; train again, with {len(moments)} kills")
    run = Run(folder / "killed", options, report)
    session = run.finish_with_kills(moments, n_iterations)
    report("ended; compare\n")
    comparison = compare_bitwise(reference, session)
    if comparison.equal and not run.kills:
        print("NOT VERIFIED: it ended before it could be killed. Raise `--trainer.max_steps`.")
        return 1
    lines = _equal(comparison, reference) if comparison.equal else _different(comparison)
    print(f"Killed {'; '.join(run.kills) or 'never'}.", *lines, sep="\n", flush=True)
    return 0 if comparison.equal else 1


def _equal(comparison: Comparison, reference: Path) -> list[str]:
    trails = [read_trail(path) for path in reference.glob("trail_rank*")]
    batches = [line for trail in trails for line in trail if line["event"] == "batch"]
    n_samples = sum(len(next(iter(line["samples"].values()))) for line in batches)
    n_validations = sum(line["event"] == "validated" for line in trails[0])
    checkpoint = comparison.compared["checkpoints/last.ckpt"]
    parts = Counter(name.partition(".")[0] for name in checkpoint)
    weights, optimiser, scheduler = (
        parts[name] for name in ("state_dict", "optimizer_states", "lr_schedulers")
    )
    others = len(checkpoint) - weights - optimiser - scheduler
    lines = [
        "EQUAL: bitwise as if it had never been killed.",
        f"    {len({line['iteration'] for line in batches})} iterations: "
        f"{n_samples} samples, losses and weights",
        f"    {n_validations} validations: scores",
        f"    last.ckpt: {weights} tensors of weights, {optimiser} values of the optimiser, "
        f"{scheduler} of schedulers, {others} others (positions, callbacks, metrics, best score; "
        "no times, settings and counts of repeated validations); best.ckpt likewise",
        f"    metrics.csv: {len(comparison.compared['metrics.csv'])} numbers",
    ]
    if comparison.own:
        lines.append(f"    no checkpoint holds this, and nothing above shows it: {comparison.own}")
    return lines


def _different(comparison: Comparison) -> list[str]:
    first, lines = comparison.first, ["NOT EQUAL to the run that was never killed."]
    causes = "files"
    if first:
        when = f"after restart {first.n_restarts}" if first.n_restarts else "before any restart"
        causes = next(iter(first.found)) if first.n_restarts else when
        process = f", process {first.rank}" if first.rank else ""
        lines.append(f"    first at iteration {first.iteration}, {when}{process}:")
        lines += [f"        {description}" for description in first.found.values()]
    for file, names in comparison.differing.items():
        if names:
            n = len(comparison.compared[file])
            lines.append(f"    {Path(file).name}: {len(names)} of {n} differ ({shorten(names)})")
    return [*lines, "Usual causes:", *(f"    - {cause}" for cause in _CAUSES[causes])]
