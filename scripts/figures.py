"""Draws the pictures of a session and of a comparison that the documents show.

python scripts/figures.py            # docs/: a minute on two CPU cores
python scripts/figures.py FOLDER     # elsewhere

It trains projects/digits three times. A test runs it, so that no picture is older than the code.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from lightning_trainer.main import main

ROOT = Path(__file__).parent.parent
RUNS = {"digits": [], "narrow": ["--model.width=4"], "slow": ["--model.learning_rate=0.0003"]}
OF_SESSION = ("curves.png", "confusion_matrix.png", "mistakes.png")


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
    return [output, *(folder / name for name in OF_SESSION)]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    draw(target.absolute(), "--trainer.val_check_interval=25", "--trainer.log_every_n_steps=10")
