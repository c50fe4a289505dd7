"""A score of which the worst value would count as the best."""

from collections.abc import Iterator
from types import SimpleNamespace

from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_trainer.base.optimising import by_name
from lightning_trainer.base.scoring import score_direction
from lightning_trainer.check.findings import CannotCheck, Finding, certain
from lightning_trainer.check.project import Project

_WORDS = {"max": "higher", "min": "lower"}


def metrics_direction(project: Project) -> str | None:
    """Which score is better by its metric, whatever `score_mode` says: "max", "min" or None."""
    module = project.module
    without_mode = SimpleNamespace(
        score_mode=None, score_key=module.score_key, val_metrics=module.val_metrics
    )
    return score_direction(without_mode)


def find_wrong_direction(project: Project) -> Iterator[Finding]:
    """Compares what the metric says with `score_mode` and with plateau schedulers."""
    module, right = project.module, metrics_direction(project)
    name = module.score_key.partition("/")[2]
    given = module.score_mode
    if right is None and given is None:
        raise CannotCheck(f"nothing says whether a higher `{name}` is better: `fit` refuses this")
    if right and given and given != right:
        yield certain(
            "mode",
            f"`score_mode` is {given!r}, but a {_WORDS[right]} `{name}` is better",
            "the mode is that of another score: best.ckpt would be the worst one",
            f"leave `score_mode` out, or set it to {right!r}",
        )
    wanted = right or str(given)
    for scheduler in by_name(module.scheduler).values():
        if isinstance(scheduler, ReduceLROnPlateau) and scheduler.mode != wanted:
            yield certain(
                "plateau",
                f"`ReduceLROnPlateau` has mode {scheduler.mode!r}, but is stepped with the score, "
                f"of which a {_WORDS[wanted]} one is better (`{name}`)",
                "its default is 'min': it lowers the learning rate while the score improves",
                f"give it mode={wanted!r}",
            )
