"""Runs projects of the gallery and writes into docs/gallery.md what came out.

python scripts/gallery.py              # prints the page's table with the lines counted anew
python scripts/gallery.py gan byol     # runs and verifies these two first: new row, log, picture

A run has one thread, so that its seconds of processor time are those of a core that it has alone.
"""

import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/gallery.md"
ROW = re.compile(r"^\| \[(\w+)\]\(#\w+\) \|(.*)\|$", re.MULTILINE)
BEGINS_FROM = {"finetune": "byol"}  # needs weights of the other's session
_FEWEST_PIXELS = 500  # a smaller picture is enlarged


def rows() -> dict[str, list[str]]:
    """The cells of the page's table, by project: what it shows, lines, seconds, score, restart."""
    return {
        name: [cell.strip() for cell in cells.split("|")]
        for name, cells in ROW.findall(PAGE.read_text())
    }


def n_lines(name: str) -> int:
    """Lines of all files of a project."""
    files = (ROOT / "projects" / name).glob("*.py")
    return sum(len(path.read_text().splitlines()) for path in files)


def row(name: str, cells: list[str]) -> str:
    shown, _, *others = cells
    return f"| [{name}](#{name}) | {' | '.join([shown, str(n_lines(name)), *others])} |"


def table() -> str:
    """The rows of the page, with the lines that the projects have now."""
    return "\n".join(row(name, cells) for name, cells in rows().items())


def call(*args: str) -> float:
    """Runs `python cli.py`; returns the seconds of processor time it took.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "cli.py", *args]
    subprocess.run(command, cwd=ROOT, env=env, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def options(name: str, folder: Path) -> list[str]:
    """Of `fit` and `verify`; trains first what a project begins from."""
    config = ["--config", f"configs/{name}.yaml"]
    if name not in BEGINS_FROM:
        return config
    other = BEGINS_FROM[name]
    if not (folder / other).exists():
        call("fit", *options(other, folder), "--output_path", str(folder / other))
    return [*config, "--init_from", str(next((folder / other).iterdir()))]


def excerpt(log: str) -> str:
    """The last line of training, the last validation, and the summary down to the best score."""
    begin = log.rindex("\nIteration") + 1
    end = log.index("\n", log.index("Best score:", begin))
    return re.sub(r"\S*/(session_\w+)", r"experiments/\1", log[begin:end])


def save_picture(session: Path, path: Path) -> str:
    """Saves the newest picture of a validation; returns the newest text, if there is one."""
    events = EventAccumulator(str(session))
    events.Reload()
    tags = events.Tags()
    for tag in sorted(tags["images"]):
        if tag.startswith("val/"):
            path.write_bytes(events.Images(tag)[-1].encoded_image_string)
            picture = Image.open(path)
            factor = -(-_FEWEST_PIXELS // picture.width)
            size = (factor * picture.width, factor * picture.height)
            picture.resize(size, Image.Resampling.NEAREST).save(path, optimize=True)
    texts = [tag for tag in tags["tensors"] if tag.startswith("val/")]
    return events.Tensors(texts[0])[-1].tensor_proto.string_val[0].decode() if texts else ""


def replace_block(page: str, mark: str, text: str) -> str:
    """The page with another code block after an HTML comment."""
    pattern = rf"(<!-- {mark} -->\n```\n).*?(\n```\n)"
    return re.sub(pattern, lambda m: m[1] + text.strip("`\n") + m[2], page, flags=re.DOTALL)


def renew(name: str, folder: Path) -> None:
    """Runs and verifies a project, and writes its row, its log and its picture or text."""
    given = options(name, folder)
    taken_s = call("fit", *given, "--output_path", str(folder / name))
    call("verify", *given)
    [session] = (folder / name).iterdir()
    log = (session / "log.txt").read_text()
    best = re.search(r"^Best score: +(\S+)", log, re.MULTILINE)
    told = re.search(r"^Val score \((.*)\):", log, re.MULTILINE)
    text = save_picture(session, ROOT / f"docs/gallery/{name}.png")
    page = PAGE.read_text()
    cells = [rows()[name][0], "", f"{taken_s:.0f}", f"{best[1]} ({told[1]})", "yes"]
    page = re.sub(rf"^\| \[{name}\].*$", lambda _: row(name, cells), page, flags=re.MULTILINE)
    page = replace_block(page, f"log of {name}", excerpt(log))
    PAGE.write_text(replace_block(page, f"text of {name}", text))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:]:
            renew(name, Path(folder))
    print(table())


if __name__ == "__main__":
    main()
