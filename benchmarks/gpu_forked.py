"""`cli.py` for rehearsals: what `verify` starts is forked from a process that has imported all.

FORKS=SOCKET python benchmarks/gpu_forked.py verify --config configs/digits.yaml
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from forks import ForkedProcess

from lightning_trainer.main import main
from lightning_trainer.verify import kills

if __name__ == "__main__":
    popen = partial(ForkedProcess, address=os.environ["FORKS"])
    kills.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": popen})
    sys.argv[0] = str(Path(__file__).parent.parent / "cli.py")
    main()
