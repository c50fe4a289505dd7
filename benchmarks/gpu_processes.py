"""Rows of the GPU programme with two processes that share one GPU."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gpu_frame import Bench, FailedError, Result, kill_tree
from gpu_restarts import DETERMINISTIC, DIGITS, fit, numbers

# Lightning refuses a GPU that is named twice: each process is a node of its own.
STRATEGY = (
    "--trainer.strategy={{class_path: lightning.pytorch.strategies.DDPStrategy, init_args: "
    "{{process_group_backend: {backend}, gradient_as_bucket_view: true}}}}"
)
COMMON = (*DIGITS, DETERMINISTIC, "--trainer.log_every_n_steps=1", "--model.vis_iterations=0")
ENDLESS = ("--trainer.max_steps=100000", "--trainer.val_check_interval=100000")
SAME = """
import sys
from pathlib import Path
from restarts import result, same
a, b = (result(Path(folder)) for folder in sys.argv[1:])
print(*(name for name in a if not same(a[name], b[name])), "differ")
"""


class Pair:
    """Two processes of one run.

    Args:
        bench: Of the row.
        backend: "gloo" or "nccl".
        options: Of `fit`.
        env: Variables of both.
    """

    def __init__(self, bench: Bench, backend: str, *options: object, **env: str) -> None:
        self.bench = bench
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0", **env}
        own = [{"NODE_RANK": str(rank), "NCCL_HOSTID": f"host{rank}"} for rank in range(2)]
        fits = ("fit", *options, "--trainer.num_nodes=2", "--trainer.devices=1", bench.on)
        strategy = STRATEGY.format(backend=backend)
        folder = [f"--output_path={bench.folder}"] if "--ckpt_path" not in options else []
        self.processes, self.files = zip(
            *(
                bench.start("cli.py", *fits, strategy, *folder, env={**common, **variables})
                for variables in own
            ),
            strict=True,
        )

    def wait(self, limit_s: float) -> list[int]:
        """The exit codes; 1000 for a process that had to be killed."""
        ends_at_s = min(time.monotonic() + limit_s, self.bench.ends_at_s)
        while any(process.poll() is None for process in self.processes):
            if time.monotonic() > ends_at_s:
                break
            time.sleep(0.05)
        codes = [1000 if process.poll() is None else process.wait() for process in self.processes]
        for process, file in zip(self.processes, self.files, strict=True):
            if process.poll() is None:
                kill_tree(process.pid)
            self.bench.log(file.read_text(errors="replace"))
        return codes

    def wait_for(self, text: str) -> None:
        """Waits until the first process has printed it."""
        while text not in self.files[0].read_text(errors="replace"):
            if any(process.poll() is not None for process in self.processes):
                self.wait(20)
                raise FailedError(f"ended before it printed `{text}`: {self.last_lines()}")
            if self.bench.left_s < 0:
                self.wait(0)
                raise TimeoutError(f"the row's time is over, before it printed `{text}`")
            time.sleep(0.05)

    def last_lines(self) -> str:
        texts = [file.read_text(errors="replace").splitlines() for file in self.files]
        return " / ".join(text[-1] if text else "" for text in texts)


def finish(bench: Bench, backend: str, *options: object, **env: str) -> Path:
    """The session of a pair that must end well."""
    before = set(bench.folder.glob("session_*"))
    pair = Pair(bench, backend, *options, **env)
    codes = pair.wait(bench.left_s)
    if codes != [0, 0]:
        raise FailedError(f"exit codes {codes}: {pair.last_lines()}")
    return next(iter(set(bench.folder.glob("session_*")) - before), bench.folder)


def two_processes(
    backend: str, dies_in_s: float, **env: str
) -> Callable[[Bench], Iterator[Result]]:
    """The losses of two processes, a death of one, a signal to one."""

    def measure(bench: Bench) -> Iterator[Result]:
        yield losses(bench, backend, env)
        yield death(bench, backend, dies_in_s, env)
        yield stop(bench, backend, env)

    return measure


def losses(bench: Bench, backend: str, env: dict[str, str]) -> Result:
    """Those of two processes with half of the batch each are those of one.

    In float64, told in float32: float32 means TF32 for a convolution, whose order of additions
    depends on the size of the batch.
    """
    short = (*COMMON, "--trainer.max_steps=8", "--trainer.precision=64-true")
    both = numbers(finish(bench, backend, *short, "--data.batch_size=32", **env), "train/loss")
    one = numbers(fit(bench, *short, "--data.batch_size=64", bench.on), "train/loss")
    difference = max(abs(both[n] - one[n]) / one[n] for n in range(1, 9))
    return Result(f"differ by up to {difference:.1e}", difference < 1e-6, "losses of 8 iterations")


def death(bench: Bench, backend: str, limit_s: float, env: dict[str, str]) -> Result:
    """One is killed: the other ends soon, and says why."""
    pair = Pair(bench, backend, *COMMON, *ENDLESS, **env)
    pair.wait_for("Iteration     40/")
    os.kill(pair.processes[1].pid, signal.SIGKILL)
    started_s = time.monotonic()
    code = pair.wait(60)[0]
    took_s = time.monotonic() - started_s
    told = "contact with another process was lost" in pair.files[0].read_text(errors="replace")
    text = f"the other ended with {code} after {took_s:.1f} s, {'with' if told else 'without'}"
    good = told and code not in (0, 1000) and took_s < limit_s
    return Result(f"{text} its cause", good, f"one is killed, limit {limit_s:.0f} s")


def stop(bench: Bench, backend: str, env: dict[str, str]) -> Result:
    """One gets a signal: both stop at one iteration, and go on as if they had not."""
    what = "SIGUSR1 to one"
    before = set(bench.folder.glob("session_*"))
    pair = Pair(bench, backend, *COMMON, *ENDLESS, **env)
    pair.wait_for("Iteration     40/")
    os.kill(pair.processes[1].pid, signal.SIGUSR1)
    codes, output = pair.wait(30), pair.files[0].read_text(errors="replace")
    if codes != [128 + signal.SIGUSR1] * 2:
        return Result(f"exit codes {codes}: {pair.last_lines()}", False, what)
    n = int(output.rpartition("Stopped by SIGUSR1 at iteration ")[2].split()[0])
    [session] = set(bench.folder.glob("session_*")) - before
    end = (f"--trainer.max_steps={n + 20}", f"--trainer.val_check_interval={n + 20}")
    finish(bench, backend, "--ckpt_path", session, *end, **env)
    whole = finish(bench, backend, *COMMON, *end, **env)
    differ = bench.run("-c", SAME, session, whole).output.strip()
    equal = differ == "differ"  # no name before it
    text = f"stopped at {n}; after 20 more {'EQUAL' if equal else f'NOT EQUAL: {differ}'}"
    return Result(text, equal, what)


def nccl(bench: Bench) -> Iterator[Result]:
    """The same over NCCL, which supports no two processes on a GPU: by two ways around that."""
    version = bench.run("-c", "import torch; print(torch.cuda.nccl.version())").output
    env = {"NCCL_SOCKET_IFNAME": "lo", "NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"}
    if tuple(map(int, version.strip(" ()\n").split(","))) >= (2, 30, 0):
        env = {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_NVLS_ENABLE": "0", "NCCL_MAX_CTAS": "2"}
    yield from two_processes("nccl", 40, **env)(bench)
