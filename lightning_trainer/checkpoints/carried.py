"""KeepMetrics: metrics go on over a restart, with the metrics within them."""

import warnings
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_trainer.base.metrics import named_metrics
from lightning_trainer.internals import METRIC_COUNTERS, set_update_count
from lightning_trainer.internals_of_logging import metrics_of_validation
from lightning_trainer.run.state import RunCallback
from lightning_trainer.session.checkpoint_header import KEY, layer_state


class KeepMetrics(RunCallback):
    """Puts the metrics of the training batches since the last validation into each checkpoint.

    torchmetrics keeps its states out of a module's `state_dict`, where they would tie the weights
    to the choice of metrics. Numbers that a metric keeps in other attributes are saved as well, for
    the validation's metrics too: the highest value of a `MinMaxMetric`, say. Each process goes on
    from its own. If the number of processes has changed, the first one goes on from all states.

    The module's other metrics, which `self.log` may be given, are kept too. One that has seen
    batches of a validation is not, until that has reset it: a restart runs a validation as a whole.
    Assumes a `BaseModule`.
    """

    _fresh: dict[tuple[str, str], dict[str, Any]] | None = None  # attributes as they were made

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._counts: dict[str, int] | None = None  # updates before the validation that is run

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        """All processes meet here."""
        others, to_reset = _other_metrics(pl_module), metrics_of_validation(trainer)
        own = {
            name: metric
            for name, metric in others.items()
            if not any(metric is each for each in to_reset)
            and (self._counts is None or self._counts.get(name) == _n_updates(metric))
        }
        attributes = {key: _attributes(m) for key, m in self._all(pl_module)}
        gather = self.run.processes.gather
        checkpoint[KEY]["train_metrics"] = gather(_states(named_metrics(pl_module.train_metrics)))
        checkpoint[KEY]["other_metrics"] = gather(_states(own))
        checkpoint[KEY]["metric_attributes"] = gather(_changed(attributes, self._fresh or {}))

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        self._note_fresh(pl_module)
        metrics, state = named_metrics(pl_module.train_metrics), layer_state(checkpoint)
        processes = state.get("train_metrics") or []
        _go_on(trainer, _other_metrics(pl_module), state.get("other_metrics") or [])
        if not processes or processes[0].keys() != metrics.keys():
            return
        _go_on(trainer, metrics, processes)
        same = len(processes) == trainer.world_size
        attributes = state.get("metric_attributes") or [{}]
        own = attributes[trainer.global_rank if same else 0]
        for key, metric in self._all(pl_module):
            vars(metric).update(move_data_to_device(own.get(" ".join(key), {}), metric.device))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._note_fresh(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._counts = {name: _n_updates(m) for name, m in _other_metrics(pl_module).items()}

    def on_validation_end(self, *_: Any) -> None:
        self._counts = None

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Forgets what the check has left, so that a restart, which has none, is the same."""
        for key, metric in self._all(pl_module):
            fresh = (self._fresh or {}).get(key, {})
            vars(metric).update(move_data_to_device(fresh, metric.device))

    def _note_fresh(self, pl_module: Any) -> None:
        if self._fresh is None:
            self._fresh = {key: _attributes(metric) for key, metric in self._all(pl_module)}

    def _all(self, pl_module: Any) -> Iterator[tuple[tuple[str, str], Metric]]:
        for attribute in ("train_metrics", "val_metrics"):
            for path, metric in _nested(getattr(pl_module, attribute)):
                yield (attribute, path), metric
        for name, metric in _other_metrics(pl_module).items():
            for path, inner in _nested(metric):
                yield (name, path), inner


def _other_metrics(pl_module: Any) -> dict[str, Metric]:
    """The metrics of a project beside the layer's, by their places in the module."""
    known = {
        id(m) for name in ("train", "val") for m in getattr(pl_module, f"{name}_metrics").modules()
    }
    found: dict[str, Metric] = {}
    for path, module in pl_module.named_modules():
        if id(module) in known or not isinstance(module, Metric | MetricCollection):
            continue
        known |= {id(m) for m in module.modules()}
        if isinstance(module, Metric):
            found[path] = module
        else:
            found |= {f"{path}.{name}": metric for name, metric in named_metrics(module).items()}
    return found


def _n_updates(metric: Metric) -> int:
    return sum(inner.update_count for _, inner in _nested(metric))


def _nested(metric: torch.nn.Module) -> Iterator[tuple[str, Metric]]:
    """The metric, at the path "", and the metrics within it."""
    for path, module in metric.named_modules():
        if isinstance(module, Metric):
            yield path, module


def _states(metrics: dict[str, Metric]) -> dict[str, Any]:
    return {
        name: {path: _state(inner) for path, inner in _nested(metric)}
        for name, metric in metrics.items()
    }


def _state(metric: Metric) -> dict[str, Any]:
    copy = apply_to_collection(metric.metric_state, Tensor, lambda t: t.detach().cpu().clone())
    return {"n_updates": metric.update_count, "state": copy}


def _attributes(metric: Metric) -> dict[str, Any]:
    """The numbers and tensors that the metric keeps beside its states, on the CPU."""
    kept = {
        name: value
        for name, value in vars(metric).items()
        if isinstance(value, int | float | Tensor)
        and name not in (*METRIC_COUNTERS, *metric.metric_state)
    }
    return apply_to_collection(kept, Tensor, lambda t: t.detach().cpu().clone())  # type: ignore[no-any-return]


def _changed(now: dict[Any, dict[str, Any]], fresh: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    """Those that differ from what they were: the others are settings, which may change."""

    def same(a: Any, b: Any) -> bool:
        tensors = isinstance(a, Tensor) and isinstance(b, Tensor)
        return torch.equal(a, b) if tensors else type(a) is type(b) and a == b

    changed = {
        " ".join(key): {
            name: value
            for name, value in attributes.items()
            if not same(value, fresh.get(key, {}).get(name))
        }
        for key, attributes in now.items()
    }
    return {key: attributes for key, attributes in changed.items() if attributes}


def _outer(saved: dict[str, Any]) -> dict[str, Any]:
    """The state of the outermost metric; older checkpoints have no other."""
    return saved.get("", saved)  # type: ignore[no-any-return]


def _go_on(trainer: pl.Trainer, metrics: dict[str, Metric], processes: list[Any]) -> None:
    """Restores the metrics that all processes have saved."""
    for name, metric in metrics.items():
        states = [process[name] for process in processes if name in process]
        if not states or len(states) < len(processes):
            continue
        if len(states) == trainer.world_size:
            _restore(metric, states[trainer.global_rank])
            continue
        if trainer.is_global_zero:
            _merge(name, metric, states)
        # The same on all processes: it decides which of them compute the metric.
        set_update_count(metric, sum(_outer(state)["n_updates"] for state in states))


def _restore(metric: Metric, saved: dict[str, Any]) -> None:
    for path, inner in _nested(metric):
        state = _outer(saved) if path == "" else saved.get(path)
        if state is None or state["state"].keys() != inner.metric_state.keys():
            continue
        for name, value in state["state"].items():
            setattr(inner, name, value)
        set_update_count(inner, state["n_updates"])
    metric.to(metric.device)


def _merge(name: str, metric: Metric, states: list[dict[str, Any]]) -> None:
    _restore(metric, states[0])
    try:
        if len([*_nested(metric)]) > 1:
            raise RuntimeError("the metrics within a metric have no way to be merged")
        for state in states[1:]:
            metric.merge_state(move_data_to_device(_outer(state)["state"], metric.device))
    except RuntimeError:  # torchmetrics can't merge the states of this metric
        metric.reset()
        warnings.warn(
            f"the metric `{name}` can't be shared out to another number of processes: "
            "it starts anew",
            stacklevel=2,
        )
