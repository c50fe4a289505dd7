"""What session folders take on the disk."""

import os
from pathlib import Path


def disk_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder, each once; follows no links."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size if os.path.lexists(path) else 0
    seen: dict[tuple[int, int], int] = {}  # best.ckpt and last.ckpt may be one file
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                status = os.lstat(os.path.join(folder, name))
            except OSError:  # deleted meanwhile
                continue
            seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())


def format_bytes(n: float) -> str:
    """E.g. "3.4 MB", of 1000 each, as disks are sold and `ls --si` counts."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while n >= 1000 and len(units) > 1:
        n /= 1000
        units.pop(0)
    return f"{n:.0f} B" if units[0] == "B" else f"{n:.1f} {units[0]}"
