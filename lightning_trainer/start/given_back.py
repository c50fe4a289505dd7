"""Gives back what a run changes in its process, however it ends."""

import multiprocessing
import os
import random
import signal
import threading
from contextlib import ExitStack, suppress

import numpy as np
import torch

# Lightning sets the first three, and the others where it starts further processes.
_VARIABLES = (
    *("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "CUBLAS_WORKSPACE_CONFIG"),
    *("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"),
)


def keep_process(stack: ExitStack) -> None:
    """Gives it back once the stack closes, so that a program or a notebook goes on as before."""
    _keep_signals(stack)
    _keep_random_states(stack)
    _keep_torchs_settings(stack)
    for name in _VARIABLES:
        stack.callback(_set_variable, name, os.environ.get(name))
    start_method = multiprocessing.get_start_method(allow_none=True)
    stack.callback(multiprocessing.set_start_method, start_method, force=True)


def hide_absent_gpus(stack: ExitStack) -> None:
    """Tells torch that there is no GPU, on a machine without one, until the stack closes.

    Lightning 2.0 sets PYTORCH_NVML_BASED_CUDA_CHECK. A torch that is built for CUDA then tries to
    load NVIDIA's library in each step of an optimiser, at 0.1 ms, or looks for GPUs in the
    environment, at 4 us.
    """
    hidden, check = "CUDA_VISIBLE_DEVICES", "PYTORCH_NVML_BASED_CUDA_CHECK"
    if torch.cuda.device_count():
        return
    if hidden not in os.environ:
        os.environ[hidden] = ""
        stack.callback(os.environ.pop, hidden, None)
    if check in os.environ:
        stack.callback(os.environ.__setitem__, check, os.environ.pop(check))


def _keep_signals(stack: ExitStack) -> None:
    """The handlers: a run that ends between its check and its first batch leaves its own."""
    if threading.current_thread() is not threading.main_thread():
        return  # which alone may set them
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if (handler := signal.getsignal(number)) is not None:  # one of C code can't be set again
            stack.callback(signal.signal, number, handler)


def _keep_random_states(stack: ExitStack) -> None:
    """Of Python, numpy and torch on the CPU, and on GPUs that are in use already."""
    stack.callback(random.setstate, random.getstate())
    stack.callback(np.random.set_state, np.random.get_state())
    stack.callback(torch.set_rng_state, torch.get_rng_state())
    if torch.cuda.is_initialized():
        stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())


def _keep_torchs_settings(stack: ExitStack) -> None:
    with suppress(RuntimeError):  # torch refuses where its newer flags are set, which stay
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    stack.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    is_on = torch.are_deterministic_algorithms_enabled()
    stack.callback(torch.use_deterministic_algorithms, is_on, warn_only=only_warns)
    stack.callback(_set_threads, torch.get_num_threads())


def _set_threads(number: int) -> None:
    if torch.get_num_threads() != number:
        torch.set_num_threads(number)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
