"""RunError: how a run that Python has called for fails."""

from pathlib import Path


class RunError(RuntimeError):
    """A run that was refused or has failed; the text is what the command line prints.

    Attributes:
        session: The folder of the session, if there was one by then.
    """

    def __init__(self, message: str, session: Path | None = None) -> None:
        super().__init__(message)
        self.session = session
