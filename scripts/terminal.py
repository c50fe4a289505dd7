"""Draws what a terminal shows of the README's command: docs/terminal.svg.

python scripts/terminal.py            # trains projects/digits: a minute on two CPU cores
python scripts/terminal.py FILE       # elsewhere

The output is that of a real run, without the validations after the first.
"""

import os
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMAND = "python cli.py fit --config configs/digits.yaml"
WIDTH, HEIGHT, MARGIN = 7.6, 17, 14  # of a character, of a line and around them, in pixels


def run() -> list[str]:
    """The lines of a run in a copy of this folder.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    with tempfile.TemporaryDirectory() as place:
        for name in ("cli.py", "configs", "projects", "lightning_trainer"):
            os.symlink(ROOT / name, Path(place, name))
        words = [sys.executable, *COMMAND.split()[1:]]
        done = subprocess.run(words, cwd=place, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()


def shorten(lines: list[str]) -> list[str]:
    """Leaves out what comes between the first validation and the summary."""
    first = next(i for i, line in enumerate(lines) if line.startswith("Model saved to"))
    end = next(i for i, line in enumerate(lines) if line.startswith("Finished at"))
    return [*lines[: first + 1], "...", *lines[end - 1 :]]


def draw(lines: list[str]) -> str:
    """The lines as an SVG, white on dark; each has the width of its characters in any font."""
    columns = max(map(len, lines))
    width, height = 2 * MARGIN + columns * WIDTH, 2 * MARGIN + len(lines) * HEIGHT
    rows = []
    for number, line in enumerate(lines):
        y = MARGIN + (number + 0.75) * HEIGHT
        size = f'textLength="{len(line) * WIDTH:.1f}" lengthAdjust="spacingAndGlyphs"'
        kind = ' class="typed"' if line.startswith("$ ") else ""
        rows.append(f'<text x="{MARGIN}" y="{y:.1f}" {size}{kind}>{escape(line)}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}" role="img">',
            f"<title>What a terminal shows of {escape(COMMAND)}</title>",
            "<style>text { font: 12.6px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', "
            "monospace; fill: #d7dce2; white-space: pre } .typed { fill: #8fd694 }</style>",
            f'<rect width="{width:.0f}" height="{height:.0f}" rx="8" fill="#1b1f24"/>',
            *rows,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/terminal.svg"
    target.write_text(draw([f"$ {COMMAND}", *shorten(run())]))
