"""Builds the wheel and the sdist of this checkout, and looks whether they have what they should.

python .ci/dist.py            # into a temporary folder
python .ci/dist.py dist       # to keep them: for a release
"""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
NAME = "lightning_trainer"


def tracked(*paths: str) -> set[str]:
    """The files of this checkout that belong into a release."""
    listed = subprocess.run(
        ["git", "ls-files", *paths], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return {*listed.stdout.split()}


def difference(found: set[str], wanted: set[str]) -> list[str]:
    return [f"missing: {name}" for name in sorted(wanted - found)] + [
        f"should not be there: {name}" for name in sorted(found - wanted)
    ]


def faults(folder: Path) -> list[str]:
    """What is wrong with the wheel and the sdist in a folder."""
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    in_wheel = {name for name in names if ".dist-info/" not in name}
    wrong = [f"{wheel.name}: {line}" for line in difference(in_wheel, tracked(NAME))]
    with tarfile.open(sdist) as archive:
        files = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    made = {name for name in files if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    wanted = tracked(NAME, "LICENSE", "README.md", "pyproject.toml", "MANIFEST.in")
    wrong += [f"{sdist.name}: {line}" for line in difference(files - made, wanted)]
    licences = {Path(name).name for name in names if "/licenses/" in name}
    wanted_licences = {Path(name).name for name in tracked("LICENSE", f"{NAME}/*LICENSE")}
    return wrong + [f"{wheel.name}: {line}" for line in difference(licences, wanted_licences)]


def main(folder: Path) -> int:
    python = [sys.executable, "-m"]
    for command in (
        [*python, "build", "--outdir", str(folder), str(ROOT)],
        [*python, "twine", "check", "--strict", *(f"{folder}/{end}" for end in ("*.whl", "*.gz"))],
    ):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            print(done.stdout)
            return done.returncode
    wrong = faults(folder)
    print(
        *(wrong or [f"{path.name}: {path.stat().st_size:,} B" for path in folder.iterdir()]),
        sep="\n",
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(Path(*(sys.argv[1:] or [temporary]))))
