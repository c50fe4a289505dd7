"""Where the time of a run goes; shared by the callbacks that measure and those that tell."""

from dataclasses import asdict, dataclass


@dataclass
class RunTimes:
    """Seconds of a run, over all its starts, and the newest duration of what recurs.

    Attributes:
        elapsed_s: Wall-clock time since training started.
        data_s: Waiting for batches.
        update_s: Forward, backward and optimiser step.
        validation_s: All validations.
        checkpoints_s: Writing checkpoints.
        iterations_s: Wall-clock time of all timed iterations, validations and checkpoints left out.
        examples: Examples of all processes in those iterations.
        recent_validation_s: Duration of the newest validation.
        recent_checkpoint_s: Duration of the newest checkpoint.
    """

    elapsed_s: float = 0.0
    data_s: float = 0.0
    update_s: float = 0.0
    validation_s: float = 0.0
    checkpoints_s: float = 0.0
    iterations_s: float = 0.0
    examples: int = 0
    recent_validation_s: float = 0.0
    recent_checkpoint_s: float = 0.0

    def state_dict(self) -> dict[str, float]:
        """Plain numbers, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from those numbers."""
        for name, value in state.items():
            setattr(self, name, value)

    def add_validation(self, seconds: float) -> None:
        """Counts a validation."""
        self.validation_s += seconds
        self.recent_validation_s = seconds

    def add_checkpoint(self, seconds: float) -> None:
        """Counts a checkpoint."""
        self.checkpoints_s += seconds
        self.recent_checkpoint_s = seconds
