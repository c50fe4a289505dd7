"""A run in a process of its own that lives until a test lets it go on."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from conftest import CONFIG, TinyModule, start_process


class Waits(TinyModule):
    """Waits before iteration 13 until a file is there."""

    def __init__(self, file: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.file = Path(file)

    def forward_model(self, batch):
        while self.training and self.global_step == 12 and not self.file.exists():
            time.sleep(0.01)
        return super().forward_model(batch)


@contextlib.contextmanager
def living_run(tmp_path: Path, *options: object) -> Iterator[tuple[subprocess.Popen, Path]]:
    """A run in a process of its own that waits for the file `go_on`, and its session."""
    config = tmp_path / "waits.yaml"
    config.write_text(CONFIG.format(output_path=tmp_path / "experiments"))
    waits = ["--model", "living.Waits", "--model.file", tmp_path / "go_on"]
    with start_process("fit", "--config", config, *waits, *options) as process:
        try:
            lines = iter(process.stdout.readline, "")
            assert any("Iteration     12/23" in line for line in lines), process.stderr.read()
            [session] = (tmp_path / "experiments").iterdir()
            before: dict[str, bytes] = {}
            while before != (before := contents(session)):  # until it has written all it has to
                time.sleep(0.1)
            yield process, session
        finally:
            process.kill()


def contents(folder: Path) -> dict[str, bytes]:
    """Without what a process beside the run draws, whenever that is done."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
