"""StopOnSignal: at Ctrl-C and other signals a run finishes its iteration, saves and ends."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from lightning_trainer.internals import stop_asking_for_sigterm
from lightning_trainer.run.schedule import catch_up
from lightning_trainer.run.state import RunCallback, RunState

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StopOnSignal(RunCallback):
    """The first of SIGINT, SIGTERM, SIGHUP, SIGUSR1 ends the run after the iteration, all saved.

    Within a validation it ends after the batch; the validation runs again when the run goes on. The
    exit code is 128 + the signal's number. A second Ctrl-C does not wait for the iteration. If one
    of several processes gets the signal, all stop at the same iteration, about a second later. On
    SIGUSR1 a SLURM job asks to be queued again; use `sbatch --signal=USR1@120 --requeue`.

    A signal that was ignored at the start stays ignored: SIGHUP under `nohup`, SIGINT in the
    background of a shell script. A run in another thread than the main one gets none.

    It sets `run.stop_signal`; SaveCheckpoints, which comes last, saves and ends.
    """

    def __init__(self, run: RunState) -> None:
        super().__init__(run)
        # Lightning takes SIGTERM over even if it is ignored, so this is asked before.
        self._ignored = {n for n in _SIGNALS if signal.getsignal(n) == signal.SIG_IGN}
        self._received = 0
        self._n_batches: list[float] = []  # of a validation, on the process with the fewest
        self._give_back: list[Callable[[], object]] = []

    def on_sanity_check_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Takes the signals over, after Lightning has. Python lets the main thread alone do so."""
        if self._give_back or threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            handler = signal.SIG_IGN if number in self._ignored else self._receive
            before = signal.signal(number, handler)
            self._give_back.append(lambda n=number, handler=before: signal.signal(n, handler))  # type: ignore[misc]
        self._give_back.append(stop_asking_for_sigterm(trainer))

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.on_sanity_check_start(trainer)  # if there was no check before training
        if not self.run.saves:
            catch_up(trainer, self.run)  # else SaveCheckpoints does

    def on_test_start(self, *_: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self._ignored:
            signal.signal(number, signal.SIG_IGN)

    on_predict_start = on_test_start  # type: ignore[assignment]

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stops, but not while gradients are accumulated: no checkpoint holds them."""
        if self.run.stepped:
            self._stop_if_told(trainer)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.on_test_start()
        own = [-float(n) for n in trainer.num_val_batches]  # of each loader
        self._n_batches = [-fewest for fewest in self.run.processes.highest(*own)] if own else []

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any, **_: Any) -> None:
        batch_idx, loader_idx = (*args[3:], 0)[:2]  # after module, outputs and batch
        if trainer.state.fn == "fit" and batch_idx < self._n_batches[loader_idx]:
            self._stop_if_told(trainer)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Gives the signals back, before Lightning does."""
        while self._give_back:
            self._give_back.pop()()

    on_exception = on_train_end

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise SystemExit(128 + number)
        self._received = self._received or number

    def _stop_if_told(self, trainer: pl.Trainer) -> None:
        processes = self.run.processes
        processes.tick()
        if processes.meeting:
            self.run.stop_signal = int(processes.highest(self._received)[0])
            if self.run.stop_signal and not self.run.saves:
                end_by_signal(trainer, self.run)


def end_by_signal(trainer: pl.Trainer, run: RunState) -> None:
    """Ends the process with the exit code of the signal; all processes meet here.

    Raises:
        SystemExit: With the code.
    """
    if run.stop_signal == signal.SIGUSR1 and trainer.is_global_zero:
        _requeue()  # before they meet: a launcher ends this process once another has gone
    # Where Lightning has started a machine's other processes from its first, it kills the first as
    # soon as another fails. Only the first knows.
    by_first = run.processes.any(trainer.strategy.launcher is not None)
    raise SystemExit(0 if by_first and trainer.local_rank else 128 + run.stop_signal)


def _requeue() -> None:
    """Asks SLURM, if it runs this, to start the job again."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else job
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
        print(f"Job {job} is queued again and will go on with this session", flush=True)
    except (OSError, subprocess.SubprocessError) as ex:
        print(f"`scontrol requeue {job}` failed ({ex}): queue it again by hand", file=sys.stderr)
