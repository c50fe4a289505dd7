"""One line for the mistakes that are likely in a project's hooks, in place of a traceback."""

import linecache
import re
import traceback
from collections.abc import Mapping
from types import FrameType
from typing import Any

from lightning_trainer.base.hook_checks import describe_batch

_COLLATING = re.compile(r"torch/utils/data/_utils/collate\.py")
_BY_INDEX = ("indices must be integers", "only integers, slices", "too many indices")
_WITHOUT_GRADIENTS = ("does not require grad", "Inference tensors cannot")
_INFERENCE = (
    "an evaluation has no gradients. Where it needs them, use `with torch.enable_grad():`, and "
    "`--trainer.inference_mode false` in `validate`, `test` and `predict`"
)
_REMEDIES = {  # for what torch and Lightning say
    "backward through the graph a second time": "Give each optimiser a loss of its own, made of "
    "what is detached from the others; or, for one loss, one optimiser with groups of parameters",
    "must have the same dtype, but got Double": "Numbers of numpy are float64: let the dataset "
    "give float32, e.g. by `.float()`",
    "is out of bounds": "Classes count from 0: is the last label less than the model's outputs?",
    "Expected all tensors to be on the same device": "Make what a hook makes itself where the "
    "batch is, e.g. by `device=self.device`",
    "does not allow for gradient clipping": "With 16-mixed: leave out the optimiser's `fused`, or "
    "`trainer.gradient_clip_val`",
    "An invalid dataloader was returned": "Return what can be iterated over",
}
_DETACHED = (
    "the loss depends on no weight that is trained. Is what it is made of detached, or is every "
    "weight frozen?"
)


def likely_cause(ex: BaseException) -> str:
    """The message of an error whose cause is likely to be a mistake in a hook; else empty."""
    frames = [*traceback.walk_tb(ex.__traceback__)]
    text = "".join(traceback.format_exception(ex)) if frames else ""
    if _COLLATING.search(text):
        last = str(ex).strip().splitlines()[-1]
        return (
            f"the samples of a batch can't be put together: {last}. Give the dataset a "
            "`collate_fn(samples)` that makes the batch, e.g. by padding"
        )
    if isinstance(ex, RuntimeError) and any(part in str(ex) for part in _WITHOUT_GRADIENTS):
        in_evaluation = any("evaluation_step" in frame.f_code.co_name for frame, _ in frames)
        return f"{str(ex).splitlines()[0]}: {_INFERENCE if in_evaluation else _DETACHED}"
    return _of_hook(ex, *frames[-1]) if frames else ""


def remedy_for(ex: BaseException) -> str:
    """What to do about an error whose message says what is wrong, but not that; else empty."""
    return next((remedy for said, remedy in _REMEDIES.items() if said in str(ex)), "")


def _of_hook(ex: BaseException, frame: FrameType, line: int) -> str:
    """For a hook that does not find in a batch what it reads, or gets no output."""
    code, values = frame.f_code, frame.f_locals
    if "batch[" not in linecache.getline(code.co_filename, line):
        return ""
    owner = type(values["self"]).__name__ if "self" in values else ""
    hook = f"`{owner}.{code.co_name}`" if owner else f"`{code.co_name}`"
    place = f"({code.co_filename}, line {line})"
    batch: Any = values.get("batch")
    if isinstance(ex, KeyError) and isinstance(batch, Mapping) and ex.args[0] not in batch:
        return (
            f"{hook} reads {ex.args[0]!r} of a batch that is {describe_batch(batch)} {place}: read "
            "one of these, or let the dataset give it"
        )
    by_index = isinstance(ex, TypeError | IndexError) and any(part in str(ex) for part in _BY_INDEX)
    if by_index and batch is not None and not isinstance(batch, Mapping):
        return (
            f"{hook} reads a batch by name that is {describe_batch(batch)} {place}: let the "
            "dataset's samples be dicts, or read it by position"
        )
    return ""
