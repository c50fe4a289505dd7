"""Draws the pictures of a session, of a comparison and of pages that the documents show.

python scripts/figures.py            # docs/: two minutes on two CPU cores
python scripts/figures.py FOLDER     # elsewhere

It trains projects/digits three times. Pages are photographed by chromium, where it is installed.
docs/cifar_fast.png is drawn from the numbers in benchmarks/RESULTS.md. A test runs the rest, so
that no picture is older than the code.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parent.parent))

from matplotlib.figure import Figure

from lightning_trainer.main import main

ROOT = Path(__file__).parent.parent
RUNS = {"digits": [], "narrow": ["--model.width=4"], "slow": ["--model.learning_rate=0.0003"]}
OF_SESSION = ("curves.png", "confusion_matrix.png", "mistakes.png")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def call(*words: str) -> None:
    """Runs a command of the program.

    Raises:
        RuntimeError: If it fails.
    """
    try:
        main(words)
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"{words} ended with {stop.code}") from None


def draw(folder: Path, *options: str) -> list[Path]:
    """Trains, and puts the pictures into a folder."""
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as sessions:
        for tag, own in RUNS.items():
            place = [f"--tag={tag}", f"--output_path={sessions}"]
            call("fit", "--config=configs/digits.yaml", *place, *own, *options)
        output = folder / "compare.png"
        call("compare", *RUNS, f"--folder={sessions}", f"--output={output}")
        [session] = Path(sessions).glob("*_narrow")
        for name in OF_SESSION:
            shutil.copy(session / name, folder / name)
        if BROWSER:
            page = Path(sessions, "report.html")
            call("report", *RUNS, f"--folder={sessions}", f"--output={page}")
            photograph(page.as_uri(), folder / "report.png", 1280, 920)
            draw_tensorboard(Path(sessions), folder / "tensorboard.png")
    return [output, *(folder / name for name in OF_SESSION)]


def photograph(address: str, path: Path, width: int, height: int) -> None:
    """A picture of a page, once it has loaded."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    flags += [f"--window-size={width},{height}", "--virtual-time-budget=30000"]
    with tempfile.TemporaryDirectory() as profile:
        words = [*flags, f"--user-data-dir={profile}", f"--screenshot={path}", address]
        subprocess.run([str(BROWSER), *words], check=True, capture_output=True, timeout=180)


def draw_tensorboard(sessions: Path, path: Path, port: int = 16007) -> None:
    """What `look` opens."""
    words = [sys.executable, "cli.py", "look", str(sessions), "--port", str(port)]
    address = f"http://localhost:{port}/"
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(120):
                try:
                    if len(urlopen(f"{address}data/runs").read()) > 2 + len(RUNS):
                        break
                except OSError:
                    pass
                time.sleep(0.5)
            photograph(f"{address}#custom_scalars", path, 1280, 760)
        finally:
            server.terminate()


def draw_cifar_fast(path: Path) -> None:
    """Accuracy over seconds, with the times to 0.624 that docs/speed.md tells."""
    results = (ROOT / "benchmarks/RESULTS.md").read_text()
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, seconds, accuracy in rows_of(results, "Accuracy over seconds", 3):
        curves.setdefault(name, []).append((float(seconds), float(accuracy)))
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    colours = ("#0072B2", "#D55E00", "#009E73")  # as in session/drawing.py
    for (name, points), style, colour in zip(
        curves.items(), ("o-", "s--", "^-."), colours, strict=True
    ):
        axes.plot(*zip(*points, strict=True), style, label=name, color=colour)
    for name, median, *_ in rows_of(results, "Time to 0.624", 5)[:2]:
        colour = colours[list(curves).index(name)]
        label = f"{name}: 0.624 after {int(float(median) + 0.5)} s"
        axes.plot(float(median), 0.624, "*", markersize=13, color=colour, label=label)
    axes.axhline(0.624, color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="seconds from the command on", ylabel="accuracy on the test images")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path)


def rows_of(results: str, title: str, n_columns: int) -> list[list[str]]:
    """The rows of the tables below a title, without their heads."""
    text = results.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [re.split(r"\s*\|\s*", line)[1:-1] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if len(row) == n_columns and row[0] not in ("", "---")]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs").absolute()
    draw_cifar_fast(target / "cifar_fast.png")
    draw(target, "--trainer.val_check_interval=25", "--trainer.log_every_n_steps=10")
