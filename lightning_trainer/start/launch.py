"""Reads the variables of the launchers (Lightning's own, torchrun, SLURM)."""

import os
import random
import threading
import time
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

_PATIENCE_S = 5.0


def end_with_parent() -> None:
    """Ends this process soon after its parent, even while it waits for something.

    Lightning ends the first process when a child fails, but not a child when the first process
    fails or is killed. A child that hangs would live on and keep its device.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        time.sleep(_PATIENCE_S)  # for this process to print its own error
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def random_seed() -> int:
    """A random seed, which Lightning's launcher passes on to the processes that it starts."""
    if int(os.environ.get("LOCAL_RANK", 0)) > 0 and "PL_GLOBAL_SEED" in os.environ:
        return int(os.environ["PL_GLOBAL_SEED"])
    return random.SystemRandom().randrange(2**32)


def layout() -> dict[str, int]:
    """`devices` (per node) and `num_nodes` of processes that torchrun or srun has started."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        local, world = int(env["LOCAL_WORLD_SIZE"]), int(env["WORLD_SIZE"])
    elif SLURMEnvironment.detect() and "SLURM_NTASKS" in env:
        world = int(env["SLURM_NTASKS"])
        local = world // int(env.get("SLURM_NNODES", 1))
    else:
        return {}
    return {"devices": local, "num_nodes": world // local}


def n_processes(trainer: dict[str, Any]) -> int:
    """Number of processes, by the launchers' variables or the trainer's settings."""
    world = os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS"))
    if world is not None:
        return int(world)
    return int(trainer["num_nodes"]) * _n_devices(trainer["devices"], trainer["accelerator"])


def _n_devices(devices: Any, accelerator: Any) -> int:
    """Reads `devices` as Lightning does: a number, a list ("0,1"), or all ("auto", -1)."""
    if isinstance(devices, str) and "," in devices:
        devices = [number for number in devices.split(",") if number]
    if isinstance(devices, list):
        return len(devices)
    if str(devices) in ("auto", "-1"):
        return 1 if accelerator == "cpu" else max(torch.cuda.device_count(), 1)
    # Lightning refuses anything else later, with a better message.
    return int(devices) if str(devices).strip().isdigit() else 1
