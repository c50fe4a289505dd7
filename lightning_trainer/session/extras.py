"""Names the command that installs what an optional part needs."""

import os

from lightning_trainer.session.program import PACKAGE, is_our_script


def install_command(extra: str) -> str:
    """E.g. `pip install "lightning_trainer[onnx]"`, or the same for a checkout that is not a wheel.

    Args:
        extra: A name below `[project.optional-dependencies]` in pyproject.toml.
    """
    checkout = PACKAGE.parent
    if not is_our_script(checkout / "pyproject.toml"):
        return f'`pip install "lightning_trainer[{extra}]"`'
    place = "." if os.path.samefile(checkout, os.curdir) else checkout
    return f'`pip install -e "{place}[{extra}]"`'
