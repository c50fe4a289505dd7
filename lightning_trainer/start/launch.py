"""Reads from the launchers' variables (Lightning's own, torchrun, SLURM) which process this is."""

import os
import random
import threading
import time
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

_PATIENCE_S = 5.0


def end_with_parent() -> None:
    """Ends this process soon after the one that started it, whatever it waits for.

    Lightning ends the first process if one that it has started fails, but leaves those alone if the
    first one fails or is killed: one that hangs would live on, and keep its device.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        time.sleep(_PATIENCE_S)  # it may have an error of its own to print
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def is_first_process() -> bool:
    """Whether this is the first process of all, by the launchers' variables."""
    env = os.environ
    if "RANK" in env:
        return int(env["RANK"]) == 0
    local, node = env.get("LOCAL_RANK"), env.get("NODE_RANK", env.get("GROUP_RANK"))
    if local is not None or node is not None:
        return int(local or 0) == 0 and int(node or 0) == 0
    return int(env.get("SLURM_PROCID", 0)) == 0


def random_seed() -> int:
    """A seed that all processes share, to be kept in config.yaml."""
    if int(os.environ.get("LOCAL_RANK", 0)) > 0 and "PL_GLOBAL_SEED" in os.environ:
        return int(os.environ["PL_GLOBAL_SEED"])
    return random.SystemRandom().randrange(2**32)


def layout() -> dict[str, int]:
    """Devices on each node, and nodes, where torchrun or srun has started the processes."""
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
    """How many processes take part, by the launchers' variables or the trainer's settings."""
    world = os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS"))
    if world is not None:
        return int(world)
    return int(trainer["num_nodes"]) * _n_devices(trainer["devices"], trainer["accelerator"])


def _n_devices(devices: Any, accelerator: Any) -> int:
    """As Lightning reads them: a number, those listed ("0,1"), or all ("auto", -1)."""
    if isinstance(devices, str) and "," in devices:
        devices = [number for number in devices.split(",") if number]
    if isinstance(devices, list):
        return len(devices)
    if str(devices) in ("auto", "-1"):
        return 1 if accelerator == "cpu" else max(torch.cuda.device_count(), 1)
    # Lightning refuses anything else, later and better.
    return int(devices) if str(devices).strip().isdigit() else 1
