"""One contract for all projects: a new one gets all of it by a line in `GALLERY`.

In the default tests each trains for a few iterations in one process. The slow ones run its config
to the end, and kill it.
"""

import importlib
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import ROOT
from lightning.pytorch import LightningDataModule, LightningModule
from restarts import copy_at
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cifar import write_images
from test_overrides import hooks_of, numbers, silent
from test_recipes import place, sh  # noqa: F401
from tiny import logged, settings

from lightning_trainer import BaseDataModule, BaseModule
from projects.byol import ByolModule
from projects.tabular import TabularData

sys.path.append(str(ROOT / "scripts"))
import gallery

Results = list[tuple[Any, Any]]  # batches, and what the model makes of each


class Project(NamedTuple):
    """What the contract has to know of a project.

    Args:
        name: Of `projects/NAME` and `configs/NAME.yaml`.
        score: As the log names it.
        own: The score, worked out by the tests.
        picture: What `visualise` draws, without its mode.
        best: A score that its config reaches; None where its data is not at hand.
        options: What makes it small, or gives it data.
    """

    name: str
    score: str
    own: Callable[[Results], float]
    picture: str
    best: float | None
    options: tuple[str, ...] = ()


def joined(results: Results, truth: Callable[[Any], Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and true values of all batches, (N, ...) each."""
    pairs = [(output, truth(batch)) for batch, output in results]
    return tuple(torch.cat(both).double() for both in zip(*pairs, strict=True))


def accuracy(results: Results) -> float:
    output, label = joined(results, lambda batch: batch["label"])
    return (output.argmax(1) == label).double().mean().item()


def absolute_error(name: str) -> Callable[[Results], float]:
    def own(results: Results) -> float:
        output, truth = joined(results, lambda batch: batch[name])
        return (output - truth).abs().mean().item()

    return own


def perplexity(results: Results) -> float:
    outputs, tokens = joined(results, lambda batch: batch["tokens"][:, 1:])
    chosen = outputs.log_softmax(-1).gather(-1, tokens.long()[..., None])
    return math.exp(-chosen.mean())


def mean_iou(results: Results) -> float:
    output, mask = joined(results, lambda batch: batch["mask"])
    found = output.argmax(1)
    classes = range(output.shape[1])
    return sum(
        (((found == k) & (mask == k)).sum() / ((found == k) | (mask == k)).sum()).item()
        for k in classes
    ) / len(classes)


def padded_error(results: Results) -> float:
    """Of each series on its own."""
    errors = []
    for batch, output in results:
        for forecast, values, valid in zip(output, batch["values"], batch["valid"], strict=True):
            n = int(valid.sum())
            errors += (forecast[: n - 1] - values[1:n]).abs().tolist()
    return sum(errors) / len(errors)


def error_of_heat(results: Results) -> float:
    points = torch.cat([batch["point"] for batch, _ in results]).double()
    truth = torch.sin(torch.pi * points[:, 0]) * torch.exp(-0.1 * torch.pi**2 * points[:, 1])
    return (torch.cat([output for _, output in results]) - truth).abs().mean().item()


def overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union of two boxes."""
    sides = [max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), 0) for i in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    both = sides[0] * sides[1]
    return both / (sum(areas) - both)


def average_precision(results: Results) -> float:
    """Box by box."""
    answers, n_boxes = [], 0
    for batch, (scores, boxes) in results:
        for truth, score, box in zip(batch["boxes"], scores, boxes, strict=True):
            kept: list[list[float]] = []
            open_ones = truth.tolist()
            n_boxes += len(truth)
            for i in score.argsort(descending=True).tolist():
                candidate = box[i].tolist()
                if len(kept) < 10 and all(overlap(candidate, other) <= 0.5 for other in kept):
                    kept.append(candidate)
                    found = max(open_ones, key=lambda b: overlap(candidate, b), default=None)
                    hit = found is not None and overlap(candidate, found) >= 0.5
                    if hit:
                        open_ones.remove(found)
                    answers.append((score[i].item(), hit))
    hits = [hit for _, hit in sorted(answers, key=lambda answer: -answer[0])]
    return sum(sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit) / n_boxes


def nearest_neighbours(results: Results) -> float:
    features, labels = joined(results, lambda batch: batch["label"])
    distances = torch.cdist(*2 * [features / features.norm(dim=1, keepdim=True)])
    nearest = distances.fill_diagonal_(math.inf).argmin(1)
    return (labels[nearest] == labels).double().mean().item()


def frechet_distance(results: Results) -> float:
    made, real = (images.numpy() for images in joined(results, lambda batch: batch["image"]))
    c, d = np.cov(made.T), np.cov(real.T)
    values, vectors = np.linalg.eigh(c)
    root = vectors * values.clip(0) ** 0.5 @ vectors.T
    of_both = np.linalg.eigvalsh(root @ d @ root).clip(0) ** 0.5
    apart = ((made.mean(0) - real.mean(0)) ** 2).sum()
    return apart + np.trace(c) + np.trace(d) - 2 * of_both.sum()


def error_of_drawing(results: Results) -> float:
    drawn = [(batch, output[0]) for batch, output in results]
    return absolute_error("image")(drawn)


GALLERY = [
    Project(
        *("digits", "accuracy, higher is better", accuracy, "predictions", 0.95),
        ("--trainer.callbacks=null",),  # of which tests of their own tell
    ),
    Project(
        *("cifar", "accuracy, higher is better", accuracy, "predictions", None),
        ("--data.root=IMAGES", "--model.n_classes=3", "--data.n_workers=0", "--data.image_size=16"),
    ),
    Project(
        *("segmentation", "miou, higher is better", mean_iou, "overlays", 0.7),
        ("--model.width=4",),
    ),
    Project("tabular", "mae, lower is better", absolute_error("y"), "predicted", 47),
    Project("timeseries", "mae, lower is better", padded_error, "forecasts", 0.2),
    Project("pinn", "error, lower is better", error_of_heat, "heat", 1e-4),
    Project(
        *("chargpt", "perplexity, lower is better", perplexity, "text", 7),
        ("--data.length=256", "--model.width=32", "--model.n_layers=1"),
    ),
    Project("detection", "averageprecision, higher is better", average_precision, "boxes", 0.8),
    Project("byol", "knn, higher is better", nearest_neighbours, "nearest", 0.95),
    Project(
        *("finetune", "accuracy, higher is better", accuracy, "predictions", 0.8),
        ("--init_from=BYOL", "--trainer.callbacks.unfreeze_backbone_at_epoch=2"),
    ),
    Project("gan", "frechet, lower is better", frechet_distance, "made", 10),
    Project("vae", "mae, lower is better", error_of_drawing, "drawn", 0.1),
]
every_project = pytest.mark.parametrize("project", GALLERY, ids=[p.name for p in GALLERY])
FEW = (
    *("--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=2"),
    *("--model.vis_iterations=4", "--seed_everything=0"),
)
LINE = re.compile(
    r"Iteration +(\d+)/4 \| (\w+)/s: \d+\.\d \| loss: \S+(?: \(\w+ \S+(?:, \w+ \S+)*\))? \| "
    r"time elapsed: \d\dh\d\dm\d\ds \| time left: \d\dh\d\dm\d\ds"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """What stands for words in the options of projects."""
    folder = tmp_path_factory.mktemp("files")
    module = ByolModule()
    module.create_model()
    torch.save(module.state_dict(), folder / "byol.pt")
    return {"IMAGES": str(write_images(folder / "images")), "BYOL": str(folder / "byol.pt")}


@pytest.fixture
def begin(files, tmp_path):
    """The options of `fit` for a project, small as the tests need it."""

    def begin_(project: Project, *options: str) -> list[str]:
        given = " ".join(project.options)
        for word, path in files.items():
            given = given.replace(word, path)
        config = str(ROOT / f"configs/{project.name}.yaml")
        return ["--config", config, "--data.batch_size=16", *given.split(), *options]

    return begin_


def class_of(part: dict) -> type:
    """The class that a part of config.yaml names."""
    module, _, name = part["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def make(part: dict) -> Any:
    return class_of(part)(**part.get("init_args", {}))


def batches(data: BaseDataModule, dataset: Any, size: int = 7) -> list[Any]:
    """Of another size than the run's, made by torch alone."""
    if hasattr(dataset, "get_batch"):
        indices = torch.arange(len(dataset)).split(size)
        return [dataset.get_batch(i, torch.zeros_like(i)) for i in indices]
    collate = getattr(dataset, "collate_fn", None)
    return [*torch.utils.data.DataLoader(dataset, size, collate_fn=collate)]


def own_score(project: Project, session: Path) -> float:
    """The score of a session's last checkpoint, without the layer's loops and metrics."""
    data, module = (make(settings(session)[part]) for part in ("data", "model"))
    data.trainer = SimpleNamespace(datamodule=data)
    data.create_data()
    module.trainer = data.trainer
    module.create_model()
    weights = torch.load(session / "checkpoints/last.ckpt")["state_dict"]
    weights = {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
    module.model.load_state_dict(weights)
    module.eval()
    sets, scores = data.val_dataset, []
    for dataset in sets.values() if isinstance(sets, dict) else [sets]:
        with torch.no_grad():
            results = [(batch, module.forward_model(batch)) for batch in batches(data, dataset)]
        scores.append(project.own(results))
    return sum(scores) / len(scores)


def take_all_hooks(project: Project, session: Path) -> list[str]:
    """Options for classes that replace every hook of Lightning but those that the project takes.

    They draw nothing, to be quick.
    """
    parts, options = settings(session), []
    for part, base, lightning in (
        ("model", BaseModule, LightningModule),
        ("data", BaseDataModule, LightningDataModule),
    ):
        cls = class_of(parts[part])
        hooks = [hook for hook in hooks_of(lightning) if getattr(cls, hook) is getattr(base, hook)]
        name = f"Silent{cls.__name__}"
        globals()[name] = type(name, (cls,), dict.fromkeys([*hooks, "visualise"], silent))
        options.append(f"--{part}={__name__}.{name}")
    return options


def numbers_after(text: str, line: str) -> list[float]:
    return [float(number) for number in re.findall(rf"^{re.escape(line)}: (\S+)$", text, re.M)]


def near(value: Any) -> Any:
    """A number, or a list of them, as printed: three decimals, or four digits if it is small."""
    if isinstance(value, list):
        return [near(each) for each in value]
    return pytest.approx(value, rel=1e-3, abs=6e-4 if abs(value) >= 0.01 else 0)


@pytest.mark.long
@every_project
def test_a_project_keeps_the_contract(project, run, begin, tmp_path, monkeypatch):
    copies, few = tmp_path / "copies", [*FEW, f"--output_path={tmp_path / 'experiments'}"]
    with monkeypatch.context() as patch:
        copy_at(patch, "on_validation_end", (2, 4), copies)
        code, out, err = run("fit", *begin(project, *few))
    assert code == 0, err
    [session] = (tmp_path / "experiments").iterdir()
    own = {step: own_score(project, copies / str(step)) for step in (2, 4)}
    lower = "lower" in project.score
    best = min(own, key=lambda step: (own[step] if lower else -own[step], step))

    # The log.
    unit = class_of(settings(session)["model"]).examples_unit
    lines = [LINE.fullmatch(line) for line in out.splitlines() if line.startswith("Iteration")]
    assert [line and line.groups() for line in lines] == [("2", unit), ("4", unit)]
    assert numbers_after(out, f"Val score ({project.score})") == near([*own.values()])
    found = re.search(r"^Best score: +(\S+) at iteration (\d+)$", out, re.M)
    assert (float(found[1]), int(found[2])) == (near(own[best]), best)
    trained, key = numbers(session), f"val/{project.score.partition(',')[0]}"
    assert logged(session, key) == pytest.approx(own, rel=1e-4)

    # The checkpoints, and what is told of them later.
    assert torch.load(session / "checkpoints/best.ckpt")["global_step"] == best
    code, out, err = run("test", "--ckpt_path", session)
    assert code == 0, err
    assert numbers_after(out, f"Test score ({project.score})") == near([own[best]])
    [row] = json.loads(run("sessions", tmp_path / "experiments", "--format=json")[1])
    assert (row["state"], row["at"]) == ("finished", best)
    assert row["best"] == pytest.approx(own[best], rel=1e-4)
    code, out, err = run("predict", "--ckpt_path", session)
    assert code == 0, err
    assert torch.load(session / "predictions.pt")

    # What is drawn.
    events = EventAccumulator(str(session))
    events.Reload()
    drawn = {*events.Tags()["images"], *events.Tags()["tensors"]}
    for mode in ("train", "val"):
        tag = re.compile(rf"{mode}/(\w+/)?{project.picture}(/text_summary)?")
        assert any(map(tag.fullmatch, drawn)), drawn

    # A project may take any hook of Lightning, and Lightning's own loop is the same, only slower.
    others = [*take_all_hooks(project, session), "--fast_loop=false"]
    code, out, err = run("fit", *begin(project, *few, *others))
    assert code == 0, err
    [other] = {*(tmp_path / "experiments").iterdir()} - {session}
    assert numbers(other) == trained


@pytest.mark.slow
@every_project
def test_a_project_that_is_killed_goes_on_bitwise_equal(
    project, run, begin, tmp_path, monkeypatch, forking_verify
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, out, err = run("verify", *begin(project))
    assert code == 0, out + err
    assert "EQUAL: bitwise as if it had never been killed." in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "project", [p for p in GALLERY if p.best is not None], ids=lambda project: project.name
)
def test_the_config_of_a_project_reaches_its_score(project, run, tmp_path):
    options = [f"--output_path={tmp_path / 'experiments'}"]
    if project.name == "finetune":
        options.append(f"--init_from={trained(run, 'byol', tmp_path / 'byol')}")
    session = trained(run, project.name, tmp_path / "experiments", *options)
    [row] = json.loads(run("sessions", tmp_path / "experiments", "--format=json")[1])
    best = row["best"]
    assert best < project.best if "lower" in project.score else best > project.best
    code, out, err = run("validate", "--ckpt_path", session)
    assert code == 0, err
    assert numbers_after(out, f"Val score ({project.score})") == near([best])
    code, out, err = run("compare", session, "--output", tmp_path / "compare.png")
    assert code == 0, err
    assert float(re.search(r"^best +(\S+)$", out, re.M)[1]) == near(best)
    # Gone on with, nothing says that it is not exact.
    n_iterations = settings(session)["trainer"]["max_steps"] + 3
    code, _, err = run("fit", "--ckpt_path", session, f"--trainer.max_steps={n_iterations}")
    assert (code, "not bitwise exact" in err) == (0, False), err


def trained(run: Callable, name: str, output_path: Path, *options: str) -> Path:
    """The session of a project's own config."""
    config = ROOT / f"configs/{name}.yaml"
    code, _, err = run("fit", "--config", config, "--output_path", output_path, *options)
    assert code == 0, err
    [session] = output_path.iterdir()
    return session


# The page.
PAGE = (ROOT / "docs/gallery.md").read_text()


def test_the_page_has_a_row_and_a_section_for_each_project():
    names = {p.name for p in GALLERY} - {"cifar"}
    assert {*gallery.rows()} == names == {*re.findall(r"^## (\w+)$", PAGE, re.M)}
    folders = {path.parent.name for path in (ROOT / "projects").glob("*/__init__.py")}
    assert folders == names | {"cifar", "cifar_fast"}


def test_the_lines_of_the_table_are_counted_right_and_at_most_120():
    assert gallery.table() in PAGE
    assert all(gallery.n_lines(name) <= 120 for name in gallery.rows())


def test_the_page_tells_nothing_that_has_not_been_run():
    for name, (_, _, seconds, score, equal) in gallery.rows().items():
        assert (int(seconds) < 120, equal) == (True, "yes"), name
        log = re.search(rf"<!-- log of {name} -->\n```\n(.*?)\n```", PAGE, re.DOTALL)[1]
        best, told = re.fullmatch(r"(\S+) \((.*)\)", score).groups()
        assert f"Val score ({told}): " in log
        assert re.search(rf"^Best score: +{re.escape(best)} at iteration \d+$", log, re.M)


@pytest.mark.parametrize("path", re.findall(r"\]\((gallery/\S+)\)", PAGE))
def test_the_pictures_of_the_page_are_there_and_small(path):
    assert (ROOT / "docs" / path).stat().st_size < 100_000


def test_the_folds_of_the_table_are_five_that_share_no_patient():
    held_out = []
    for fold in range(5):
        data = TabularData(fold)
        data.create_data()
        assert len(data.train_dataset) + len(data.val_dataset) == 442
        held_out += [tuple(sample["x"].tolist()) for sample in data.val_dataset]
    assert len({*held_out}) == 442


@pytest.mark.slow
def test_the_pages_loop_over_folds_ends_in_a_table(place):  # noqa: F811
    script = re.search(r"<!-- folds -->\n```bash\n(.*?)```", PAGE, re.DOTALL)[1]
    script = script.replace("0 1 2 3 4", "0 4").replace('--tag "', '--trainer.max_steps 50 --tag "')
    process = sh(script, place)
    assert process.returncode == 0, process.stderr
    rows = process.stdout.splitlines()
    assert len([row for row in rows if re.search(r"_fold[04]-seed[01] +finished +50/50", row)]) == 4
