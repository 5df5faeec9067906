"""The ways in which a run ends early, one exception each."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient is not finite; no update was made with it.

    Attributes:
        step: number of updates made before the failing one, which is also the failing batch's
            number, counted from 0.
    """

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read or used for this state."""


class TrainingInterrupted(RuntimeError):
    """SIGTERM or SIGINT arrived; what could be saved was saved, and the run can be resumed.

    Attributes:
        step: number of updates in the checkpoint that was written; None: no training was under
            way.
        exit_code: what a program should exit with: 75, `EX_TEMPFAIL`, "try again later".
    """

    exit_code = 75

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step
