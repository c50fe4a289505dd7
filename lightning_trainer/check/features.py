"""The target among the features."""

from collections.abc import Iterator

from lightning_trainer.check.findings import CannotCheck, Finding, hint
from lightning_trainer.check.project import Project

_SAME = 0.9995  # correlation


def find_target_in_features(project: Project) -> Iterator[Finding]:
    """Compares each feature of a table with the target by their correlation."""
    project.dataset("train")
    inputs, targets = project.keys()
    stacked, _ = project.stacked("train")
    n_looked = 0
    for key in targets:
        y = stacked.get(key)
        if y is None or key in inputs or y.numel() != len(y) or len(y) < 50:
            continue
        target = y.flatten().double() - y.double().mean()
        for name in inputs:
            x = stacked.get(name)
            if x is None or x.ndim != 2 or x.shape[1] > 4096 or not bool(x.isfinite().all()):
                continue
            n_looked += 1
            centred = x.double() - x.double().mean(0)
            product = (centred * target[:, None]).sum(0)
            r = product / (centred.norm(dim=0) * target.norm()).clamp_min(1e-30)
            same = (r.abs() > _SAME).nonzero().flatten().tolist()
            if same:
                yield hint(
                    "target",
                    f'feature {same[0]} of "{name}" has correlation {r[same[0]]:.4f} with "{key}"',
                    "the target, or what follows from it, is among the features",
                    "leave it out, unless it is known when predicting",
                )
    if not n_looked:
        raise CannotCheck("no input is a table (N, F) beside a target of one number a sample")
