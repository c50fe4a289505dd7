"""Peak memory of a run's process, against a plain loop in a process with the same packages.

python benchmarks/memory.py
python benchmarks/memory.py --data FOLDER     (with train/CLASS/* and test/CLASS/*: cifar_fast too)
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from pkgutil import resolve_name

from common import ROOT, report, spread

N_ROUNDS = 3
N_STEPS = 40  # with a validation after half of them, and after all


def run(arguments: list[str]) -> float:
    """Peak resident memory of a Python process, in MB."""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    text = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, text
    return usage.ru_maxrss / 1024 * (1 if sys.platform == "linux" else 1 / 1024)


def train_plainly(config: str, root: str) -> None:
    """The project's network, loss, optimiser and data, with nothing between the steps."""
    import lightning.pytorch as pl
    import torch
    import yaml

    import lightning_trainer.start.cli  # noqa: F401 - the same packages
    from lightning_trainer.images.augmentation import random_crop_and_flip

    settings = yaml.safe_load(Path(config).read_text())
    made = []
    for group in ("model", "data"):
        cls = resolve_name(settings[group]["class_path"])
        of_data = {"root": root} if group == "data" and root else {}
        made.append(cls(**{**settings[group]["init_args"], **of_data}))
    module, data = made
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    module.trainer = data.trainer = pl.Trainer(accelerator="cpu", max_steps=N_STEPS, **quiet)
    data.create_data()
    module.trainer.strategy.connect(module)
    for create in (module.create_model, module.create_loss, module.create_metrics):
        create()
    type(module.trainer).estimated_stepping_batches = N_STEPS  # a schedule asks for it
    module.create_optimiser()
    size, is_fast = data.batch_size, hasattr(data, "padding")

    def batches(dataset: object) -> list[torch.Tensor]:
        return [*torch.randperm(len(dataset)).split(size)]  # type: ignore[arg-type]

    def batch(dataset: object, chosen: torch.Tensor, augment: bool) -> dict[str, torch.Tensor]:
        if not is_fast:
            return torch.utils.data.default_collate([dataset[i] for i in chosen])  # type: ignore[index]
        images = dataset.images[chosen]  # type: ignore[attr-defined]
        if augment:
            images = random_crop_and_flip(images, chosen, data.padding, "reflect", data.flips)
        return {"image": images, "label": dataset.labels[chosen]}  # type: ignore[attr-defined]

    if settings["model"]["init_args"].get("channels_last"):
        module.to(memory_format=torch.channels_last)
    precision = torch.autocast(
        "cpu", torch.bfloat16, settings["trainer"].get("precision") is not None
    )
    for step in range(1, N_STEPS + 1):
        chosen = batches(data.train_dataset)[0]
        one = batch(data.train_dataset, chosen, augment=True)
        with precision:
            loss = module.forward_loss(one, module.forward_model(one))
        module.optimiser.zero_grad()
        loss.backward()
        module.optimiser.step()
        if step in (N_STEPS // 2, N_STEPS):
            module.eval()
            with torch.no_grad(), precision:
                for chosen in batches(data.val_dataset):
                    one = batch(data.val_dataset, chosen, augment=False)
                    module.val_metrics.update(module.forward_model(one), one["label"])
            module.val_metrics.compute()
            module.train()


def measure(name: str, root: str) -> None:
    config = f"configs/{name}.yaml"
    with tempfile.TemporaryDirectory() as folder:
        fit = ["cli.py", "fit", "--config", config, f"--output_path={folder}"]
        fit += [f"--trainer.max_steps={N_STEPS}", f"--trainer.val_check_interval={N_STEPS // 2}"]
        fit += [f"--data.root={root}"] if root else []
        plain = [__file__, "--plainly", config, *(["--data", root] if root else [])]
        things = {"a plain loop": plain, "`fit`": fit}
        values: dict[str, list[float]] = {thing: [] for thing in things}
        for _ in range(N_ROUNDS):
            for thing, arguments in things.items():
                values[thing].append(run(arguments))
    ratio = statistics.median(values["`fit`"]) / statistics.median(values["a plain loop"])
    print(f"{name}: {ratio:.3f}")
    report(
        f"Peak memory: {name}",
        f"Of the process, {N_STEPS} iterations, two validations, {N_ROUNDS} rounds; the plain loop "
        f"has imported the same packages.\n\n{spread(values, 'MB')}",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="", help="folder of CIFAR-10's images")
    parser.add_argument("--plainly", help="train by a plain loop: what this programme runs itself")
    arguments = parser.parse_args()
    if arguments.plainly:
        train_plainly(arguments.plainly, arguments.data)
    else:
        measure("digits", "")
        if arguments.data:
            measure("cifar_fast", arguments.data)
