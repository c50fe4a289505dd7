"""Writes a session's weights alone: python cli.py export experiments/session_... --onnx."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn

from lightning_trainer.checkpoints.weights import find_weights, read_weights
from lightning_trainer.commands.options import CommandParser
from lightning_trainer.internals_of_hooks import without_profiler
from lightning_trainer.session.extras import install_command
from lightning_trainer.session.folder import Session
from lightning_trainer.start.cli import SessionCLI, run_trainer

_DESCRIPTION = """Writes the weights of a session's best checkpoint, without the optimiser and all
else, to model.safetensors; with --onnx the model to model.onnx as well, for batches of any size,
checked by running it on validation data beside the model."""
_CLOSE = 1e-3  # of the largest output: float32 sums in another order


def export(argv: list[str]) -> int:
    """Runs the command with the words after `export`; returns its exit code."""
    parser = CommandParser("export", description=_DESCRIPTION)
    parser.add_argument("session", metavar="SESSION", help="a session folder or a checkpoint")
    parser.add_argument("--onnx", action="store_true", help="the model as ONNX too")
    parser.add_argument("--output", metavar="FOLDER", help="default: the session folder")
    options = parser.parse_args(argv)
    session = Session.around(options.session)
    folder = Path(options.output or (session.path if session else "."))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files, lines = find_weights(options.session)
        print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr)
        print(_write_weights(files, folder / "model.safetensors"), flush=True)
    except (OSError, ValueError) as ex:
        parser.error(str(ex).replace("`init_from` is", "the session is"))
    if not options.onnx:
        return 0
    if missing := _missing():
        parser.error(f"`--onnx` needs {missing}: {install_command('onnx')}")
    try:
        _ExportCLI.target = folder / "model.onnx"
        run_trainer(["validate", "--ckpt_path", options.session], _ExportCLI)
    except _Exported as ended:
        print(ended.told, file=sys.stderr if ended.code else sys.stdout, flush=True)
        return int(ended.code or 0)
    return 1


def _write_weights(files: list[Path], target: Path) -> str:
    """Writes the model's tensors, with the names that `self.model` has for them.

    Raises:
        ValueError: If there are none, the file can't be written, or safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError:
        raise ValueError(f"{install_command('weights')} writes safetensors") from None
    tensors = read_weights(files)
    own = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    weights = own or tensors
    if not weights:
        raise ValueError(f"{files[0]} has no weights")
    # Clones: two names of one tensor are refused.
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}
    part = target.with_suffix(".tmp")
    try:
        save_file(copies, part, metadata={"format": "pt", "source": str(files[0])})
    except SafetensorError as ex:
        raise ValueError(
            f"{target} can't be written ({ex}): give another folder by `--output`"
        ) from None
    part.replace(target)
    n = sum(tensor.numel() for tensor in copies.values())
    return f"Weights saved to: {target} ({n:,} numbers in {len(copies)} tensors of {files[0]})"


def _missing() -> str:
    missing = []
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    return ", ".join(missing)


class _Exported(SystemExit):
    """Ends the run before its first validation batch is evaluated."""

    def __init__(self, told: str, code: int) -> None:
        super().__init__(code)
        self.told = told


def make_plain(config: Any) -> None:
    """Leaves of a command's settings what a model needs in one process on the CPU, not compiled."""
    trainer = {"callbacks": None, "logger": False, "profiler": None, "accelerator": "cpu"}
    for name, value in {**trainer, "devices": 1, "num_nodes": 1, "strategy": "auto"}.items():
        config.trainer[name] = value
    arguments = config.model.get("init_args") or {}
    if arguments.get("compile"):
        arguments["compile"] = False


class _ExportCLI(SessionCLI):
    """Makes the objects of `validate` with the checkpoint's weights, without writing anything."""

    target = Path()

    def before_instantiate_classes(self) -> None:
        config, restart = self.config.validate, self.restart
        assert restart is not None
        config.ckpt_path = str(restart.checkpoint)
        config.verbose = False
        make_plain(config)

    def instantiate_classes(self) -> None:
        super(SessionCLI, self).instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        own = {
            "logger": [DummyLogger()],
            "callbacks": [_ExportModel(self.target)],
            "profiler": without_profiler(),
        }
        return LightningCLI.instantiate_trainer(self, **own, **kwargs)


class _ExportModel(Callback):
    def __init__(self, target: Path) -> None:
        self.target = target

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        raise _Exported(*_export(pl_module, batch, self.target))


class _Taken(dict[str, Any]):
    """A batch that notes which of its parts are read."""

    def __init__(self, batch: Mapping[str, Any]) -> None:
        super().__init__(batch)
        self.read: list[str] = []

    def __getitem__(self, name: str) -> Any:
        if name not in self.read:
            self.read.append(name)
        return super().__getitem__(name)


class _OfTensors(nn.Module):
    """`forward_model` as a function of the tensors that it reads."""

    def __init__(self, module: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *tensors: Tensor) -> Any:
        return self.module.forward_model(dict(zip(self.names, tensors, strict=True)))


def _export(module: Any, batch: Any, target: Path) -> tuple[str, int]:
    """Writes the model, and runs it on the batch and on a part of it; what to say, and a code."""
    if not isinstance(batch, Mapping):
        return "`--onnx` needs batches that are dicts of tensors", 1
    taken = _Taken(batch)
    with torch.no_grad():
        module.forward_model(taken)
    tensors = [batch[name] for name in taken.read]
    if not (tensors and all(isinstance(t, Tensor) and t.ndim for t in tensors)):
        return f"`--onnx` needs tensors, and `forward_model` reads {taken.read}", 1
    wrapped = _OfTensors(module, taken.read).eval()
    part = target.with_suffix(".tmp")
    try:
        _write_onnx(wrapped, tensors, part)
        largest = max(_difference(wrapped, part, tensors, n) for n in (len(tensors[0]), 3))
    except Exception as ex:  # whatever the model has that ONNX has not
        part.unlink(missing_ok=True)
        reason = next(iter(str(ex).strip().splitlines()), "")
        return f"error: the model can't be exported to ONNX: {type(ex).__name__}: {reason}", 1
    if not largest <= _CLOSE:
        part.unlink()
        return f"error: the ONNX model differs by {largest:.1e} of the largest output: not kept", 1
    part.replace(target)
    inputs = ", ".join(
        f"{n} {tuple(t.shape[1:])}" for n, t in zip(taken.read, tensors, strict=True)
    )
    return (
        f"Model saved to: {target} (inputs: {inputs}; run on validation data it differs by "
        f"{largest:.1e} of the largest output)",
        0,
    )


def _write_onnx(wrapped: _OfTensors, tensors: Sequence[Tensor], target: Path) -> None:
    """Writes it for batches of any size; raises what ONNX's exporter does."""
    program = torch.onnx.export(
        wrapped,
        tuple(tensors),
        input_names=wrapped.names,
        dynamic_shapes={"tensors": tuple({0: torch.export.Dim.DYNAMIC} for _ in tensors)},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(target, external_data=False)


def _difference(wrapped: nn.Module, path: Path, tensors: Sequence[Tensor], n: int) -> float:
    """The largest difference between the model and the file, as a part of the largest output."""
    import onnxruntime

    given = [tensor[:n] for tensor in tensors]
    with torch.no_grad():
        output = wrapped(*given)
    flat = [*_tensors_of(output)]
    runtime = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in runtime.get_inputs()]
    feed = {name: t.numpy() for name, t in zip(names, given, strict=True)}
    found = [torch.from_numpy(array) for array in runtime.run(None, feed)]
    scale = max((float(t.abs().max()) for t in flat), default=1.0) or 1.0
    pairs = zip(flat, found, strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs) / scale


def _tensors_of(output: Any) -> Iterator[Tensor]:
    """The tensors of an output, in the order in which ONNX has them."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping | list | tuple):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors_of(part)
