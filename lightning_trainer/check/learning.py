"""Whether one small batch can be learned by heart, and what keeps it from that."""

from collections.abc import Iterator

from lightning_trainer.check.findings import Finding, certain, hint
from lightning_trainer.check.memorising import (
    SmallBatch,
    Trial,
    highest_rate,
    peak_rate,
    small_batch,
)
from lightning_trainer.check.project import Project
from lightning_trainer.check.trained import AtStart, find_equal_or_dead, find_in_trained

_N_OWN = 12  # iterations
_LOWER, _HIGHER = (0.1, 0.01, 0.001), (10.0, 100.0, 1000.0, 10_000.0)  # of rates that are tried


def find_not_learning(project: Project) -> Iterator[Finding]:
    """Trains on one batch, with other learning rates if its loss does not fall."""
    if project.has_own_step:
        yield from _in_own_steps(project)
    project.need_usual_step()
    small = small_batch(project)
    yield from _start(project, small)
    with project.scratch():
        before = AtStart(project)
        trial = small.train()
        evaluated = project.forward(small.new(), training=False, grad=False)
        is_learned = small.progress(trial.end) > 0.3
        found = []
        if trial.end < 1e30:
            found = [*find_in_trained(project, small.batch, before, is_learned)]
    loss = None if evaluated[1] is None else evaluated[1].item()
    project.once("progress", lambda: small.progress(trial.end))
    if loss is not None:
        yield from _gap(small, trial, loss)
    if is_learned or not trial.is_long:
        yield from found
    else:
        yield from _try_rates(project, small, trial, found)


def _in_own_steps(project: Project) -> Iterator[Finding]:
    """What can be known where the project has a `training_step` of its own."""
    with project.scratch():
        before = AtStart(project)
        for i in range(_N_OWN):
            project.step(project.batch("train", 16, 16 * i), i, i)
        yield from [*find_equal_or_dead(project, before)]


def _start(project: Project, small: SmallBatch) -> Iterator[Finding]:
    """An untrained classifier far worse than one that knows nothing."""
    start, constant = small.start, small.constant
    if not (small.has_ideal and small.is_classification and constant is not None):
        return
    if start > max(3 * constant, 1):
        yield hint(
            "start",
            f"the untrained loss is {start:.3g}, that of the best constant output {constant:.3g}",
            "the initial weights are large, or the inputs are not normalised",
            "torch's own initialisation, normalised inputs, a last layer near zero",
        )


def _gap(small: SmallBatch, trial: Trial, loss: float) -> Iterator[Finding]:
    constant = small.constant
    learned = small.has_ideal and small.progress(trial.end) > 0.7
    if learned and constant is not None and loss > constant and small.progress(loss) < 0:
        yield hint(
            "evaluation",
            f"after {len(trial.losses)} iterations on one batch its loss is {trial.end:.3g} in "
            f"training mode, {loss:.3g} in evaluation, a constant output has {constant:.3g}",
            "batch norm's statistics lag behind, or a part works in training only",
            "check the momentum of batch norm, dropout, and what depends on `self.training`",
        )


def _try_rates(
    project: Project, small: SmallBatch, trial: Trial, found: list[Finding]
) -> Iterator[Finding]:
    fallen = (small.start - trial.end) / max(abs(small.start), 1e-9)
    may_be_low = abs(fallen) < 0.03 and not any(finding.certain for finding in found)
    ends = _ends(project, small, _LOWER + (_HIGHER if may_be_low else ()))
    best = min(ends, key=lambda factor: ends[factor])
    rate = max(peak_rate(project), highest_rate(project))
    reached = small.progress(ends[best])
    numbers = (
        f"on one batch of {small.n} samples the loss goes from {trial.losses[0]:.3g} to "
        f"{trial.end:.3g} with the learning rate {rate:.3g}, to {ends[best]:.3g} with "
        f"{rate * best:.3g}"
    )
    own = small.progress(trial.end)
    is_worse = trial.best_of_end > small.start or own < 0.1
    if best < 1 and reached > 0.5 and is_worse and not _learns_whole(project, small.n):
        remedy = f"lower it, e.g. to {rate * best:.1g}"
        yield certain("rate_high", numbers, "the learning rate is far too high", remedy)
        return
    yield from found
    fall_of_best = (small.start - ends[best]) / max(abs(small.start), 1e-9)
    stands_still = abs(fallen) < 1e-3 and fall_of_best > 0.03
    if best > 1 and (max(reached, fall_of_best) > 0.3 or stands_still):
        remedy = f"raise it, e.g. to {rate * best / 10:.1g}"
        yield hint("rate_low", numbers, "the learning rate is far too low", remedy)
    elif trial.is_whole and _learns_nothing(project, small, max(own, reached), fallen):
        yield hint(
            "not_learned",
            f"{numbers}; a constant output has {small.constant:.3g}",
            "the network does not get the input or does not use it, or targets belong to others",
            "look at one batch by eye, and at what `forward_model` gives to the network",
        )


def _ends(project: Project, small: SmallBatch, factors: tuple[float, ...]) -> dict[float, float]:
    """The losses that other learning rates reach, until one does well."""
    ends: dict[float, float] = {}
    for factor in factors:
        with project.scratch():
            ends[factor] = small.train(100, factor, 3.0).end
        if small.progress(ends[factor]) > 0.5:
            break
    return ends


def _learns_whole(project: Project, n: int) -> bool:
    """Whether the rate is one for batches of the run's size, larger ones than the `n` tried."""
    size = min(int(project.data.batch_size), project.size("train"))
    if size <= n:
        return False
    whole = SmallBatch(project, size)
    with project.scratch():
        trial = whole.train(100)
    return not trial.is_long or whole.progress(trial.best_of_end) > 0.1


def _learns_nothing(project: Project, small: SmallBatch, reached: float, fallen: float) -> bool:
    """Whether no rate learns anything, and no certain finding is likely the reason."""
    explained = any(finding.certain for finding in project.found)
    return small.has_ideal and reached < 0.1 and fallen < 0.5 and not explained
