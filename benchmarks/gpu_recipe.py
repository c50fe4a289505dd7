"""Rows of the GPU programme on the fast CIFAR-10 recipe, and on the memory of counting FLOPs.

python benchmarks/gpu_recipe.py B6 --data data/cifar10
"""

import gc
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
import yaml
from common import ROOT
from gpu_frame import Result
from gpu_projects import (
    DEVICE,
    HAS_CARD,
    LINEAR,
    StepClock,
    data_flags,
    fit,
    on_card,
    steps,
    sync,
    tell,
)

from lightning_trainer import random_crop_and_flip
from lightning_trainer.base.sampling import ExactSampler, SeededDataset
from projects.cifar import Images
from projects.cifar_fast import FastCifarData, FastCifarModule
from projects.cifar_fast.data import ImagesOnDevice

CONFIG = "configs/cifar_fast_gpu.yaml"
SETTINGS = yaml.safe_load((ROOT / CONFIG).read_text())
N_STEPS, BATCH = (SETTINGS["trainer"]["max_steps"], 2000) if HAS_CARD else (6, 8)
FIRST = N_STEPS // 20 + 2
SEEDS = {"eager": range(5), "compiled": range(2)} if HAS_CARD else {"eager": range(2)}
N_SEEN = 3  # first batches that are compared


class RecipeData(FastCifarData):
    """Reads the images once in a process; without a folder they are random."""

    kept: ClassVar[dict[str, tuple[Images, list[str]]]] = {}

    def _is_image_folder(self) -> bool:
        return not self.root.is_dir() or super()._is_image_folder()

    def _read_folder(self, split: str) -> tuple[Images, list[str]]:
        return self._once(split, super()._read_folder)

    def _read_cifar(self, split: str) -> tuple[Images, list[str]]:
        return self._once(split, super()._read_cifar)

    def _once(self, split: str, read: Callable[[str], Any]) -> tuple[Images, list[str]]:
        if split not in self.kept and self.root.is_dir():
            self.kept[split] = read(split)
        elif split not in self.kept:
            n = {"train": 50_000, "test": 10_000}[split] if HAS_CARD else 6 * BATCH
            images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)
            self.kept[split] = Images(images, torch.arange(n) % 10), [str(i) for i in range(10)]
        return self.kept[split]


class Sees(pl.Callback):
    """A sum of each of the first batches of images and labels."""

    sums: ClassVar[list[int]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, _: Any, batch: Any, *__: Any) -> None:
        if trainer.global_step < N_SEEN:
            self.sums.append(checksum(batch))


def checksum(batch: dict[str, torch.Tensor]) -> int:
    """Differs where images or labels do, or their order."""
    images = batch["image"].long().flatten(1).sum(1) * 10 + batch["label"]
    return int((images * torch.arange(1, len(images) + 1, device=images.device)).sum())


class PlainModule(FastCifarModule):
    """The recipe's, for a loop of one's own."""

    trainer = SimpleNamespace(estimated_stepping_batches=N_STEPS)


def keys_of(sampler: ExactSampler) -> Iterator[list[int]]:
    """Those of each batch, epoch after epoch."""
    while True:
        epoch = list(sampler)
        for start in range(0, len(epoch), BATCH):
            sampler.advance()
            yield epoch[start : start + BATCH]


def plain_loop(seed: int, compiled: bool, data: str) -> tuple[float, float, list[int]]:
    """Seconds of a step, accuracy on the test images, sums of the first batches."""
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = SETTINGS["trainer"].get("benchmark", False)
    module = PlainModule(**{**SETTINGS["model"]["init_args"], "compile": False})
    module.create_model()
    module.create_loss()
    module.model.to(DEVICE, memory_format=torch.channels_last)
    if compiled:
        module.model.compile(dynamic=False)
    module.create_optimiser()
    reader = RecipeData(root=data)
    train, test = (
        (images.images.to(DEVICE), images.labels.to(DEVICE))
        for images, _ in (reader._read_folder(split) for split in ("train", "test"))
    )
    seeded = SeededDataset(ImagesOnDevice(*train), seed)
    batches = keys_of(ExactSampler(len(train[1]), BATCH, seed, shuffle=True))
    sums, started_s = [], 0.0
    for n in range(N_STEPS):
        chosen = seeded.__getitems__(next(batches))
        told = {name: value.to(DEVICE) for name, value in chosen.items()}
        images = train[0].index_select(0, told["index"])
        images = random_crop_and_flip(images, told["seed"], reader.padding, "reflect", reader.flips)
        batch = {"image": images, "label": train[1].index_select(0, told["index"])}
        if n < N_SEEN:
            sums.append(checksum(batch))
        module.optimiser.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = module.forward_loss(batch, module.forward_model(batch))
        loss.backward()
        module.optimiser.step()
        module.scheduler.step()
        if n + 1 == FIRST:
            sync()
            started_s = time.perf_counter()
    sync()
    step_s = (time.perf_counter() - started_s) / (N_STEPS - FIRST)
    return step_s, accuracy(module, *test), sums


@torch.no_grad()
def accuracy(module: PlainModule, images: torch.Tensor, labels: torch.Tensor) -> float:
    module.eval()
    right = 0
    with torch.autocast(DEVICE.type, torch.bfloat16):
        for part, wanted in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            right += int((module.forward_model({"image": part}).argmax(1) == wanted).sum())
    return right / len(labels)


def layer(seed: int, compiled: bool, data: str) -> tuple[float, float, list[int]]:
    """The same of the layer."""
    import gpu_recipe as imported  # as the command line imports it: this is a script

    imported.Sees.sums.clear()
    imported.RecipeData.kept.update(RecipeData.kept)
    flags = ["--config", CONFIG, f"--seed_everything={seed}", f"--data.batch_size={BATCH}"]
    flags += ["--data=gpu_recipe.RecipeData", f"--data.root={data}"]
    flags += [f"--model.compile={str(compiled).lower()}", "--trainer.callbacks+=gpu_recipe.Sees"]
    run = [flag for flag in steps(FIRST, N_STEPS) if "limit_val" not in flag]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        _, printed = fit(folder, *flags, *run)
    score = float(re.findall(r"Val score .*: (\S+)", printed)[-1])
    return StepClock.step_s(), score, list(imported.Sees.sums)


def against_a_plain_loop(data: str | None) -> Iterator[Result]:
    """B6."""
    root = data or "none"
    for name, seeds in SEEDS.items():
        compiled, runs = name == "compiled", {"loop": [], "layer": []}
        for seed in seeds:
            runs["loop"].append(plain_loop(seed, compiled, root))
            runs["layer"].append(layer(seed, compiled, root))
            print(name, seed, runs["loop"][-1], runs["layer"][-1])
        loop, own = (statistics.median(run[0] for run in runs[key]) for key in ("loop", "layer"))
        whole = f"{own * N_STEPS:.2f} s for {N_STEPS} steps, {own / loop:.3f} x a plain loop"
        yield Result(whole, on_card(own <= 1.1 * loop), f"{name}, {len(seeds)} seeds")
        same = all(a[2] == b[2] for a, b in zip(runs["loop"], runs["layer"], strict=True))
        yield Result(f"the same in the first {N_SEEN} batches: {same}", same, f"{name}, images")
        yield scores([[run[1] for run in runs[key]] for key in ("loop", "layer")], name)


def scores(accuracies: list[list[float]], name: str) -> Result:
    """Whether the mean accuracies of the loop and the layer agree."""
    loop, own = map(statistics.mean, accuracies)
    errors = [statistics.stdev(values) / len(values) ** 0.5 for values in accuracies]
    limit = 2 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    text = f"{own:.4f}, a plain loop {loop:.4f}, two standard errors {limit:.4f}"
    return Result(text, on_card(abs(own - loop) <= limit), f"{name}, accuracy")


def from_the_command(data: str | None) -> Iterator[Result]:
    """B7."""
    words = [sys.executable, "cli.py", "fit", "--config", CONFIG, "--data=gpu_recipe.RecipeData"]
    words += [f"--data.root={data or 'none'}", f"--trainer.accelerator={DEVICE.type}"]
    if not HAS_CARD:
        words += [f"--trainer.max_steps={N_STEPS}", f"--data.batch_size={BATCH}"]
        words += ["--model.compile=false"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        started_s = time.perf_counter()
        done = subprocess.run(
            [*words, f"--output_path={folder}"], cwd=ROOT, capture_output=True, text=True
        )
    took_s = time.perf_counter() - started_s
    print(done.stdout, done.stderr)
    total = re.search(r"Total time: .*", done.stdout)
    score = re.findall(r"Val score .*: (\S+)", done.stdout)
    if not total or not score:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-200:]}")
    images = "the images given" if data else "random images"
    text = f"{took_s:.1f} s from the command, {total[0]}, accuracy {score[-1]} on {images}"
    yield Result(f"{text}; airbench94 on an A100: 2.59 s, 0.9401 on the original images")


def counting(_: str | None) -> Iterator[Result]:
    """T18."""
    width = 8192 if HAS_CARD else 64
    data = {"n": 2 * width, "shape": [1, 1, width], "batch_size": width}
    data |= {"floats": True, "on_device": True}
    flags = (*LINEAR, f"--model.width={width}", "--model.n_layers=4", *data_flags(data))
    flags += ("--model.compile=true", "--trainer.max_steps=6", "--trainer.limit_val_batches=0")
    report = "--trainer.callbacks+=lightning_trainer.ReportFlops"

    def train(*added: str) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            fit(folder, *flags, *added)

    torch.cuda.reset_peak_memory_stats()
    train()
    needed = torch.cuda.max_memory_reserved()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 1.05 * needed / whole))
    train()  # it is enough without
    text = f"within 1.05 x the {needed / 2**30:.2f} GiB that a compiled run needs"
    try:
        train(report)
        yield Result(f"fits {text}", True)
    except RuntimeError as ex:
        yield Result(f"does not fit {text}: {str(ex)[:150]}", False)


if __name__ == "__main__":
    tell({"B6": against_a_plain_loop, "B7": from_the_command, "T18": counting})
