"""What is no bug: a person's mistake, a wish to stop, and a training that diverges."""

__all__ = [
    "Diverged",
    "Stopped",
    "Unreadable",
    "UserError",
    "choices",
    "is_utf8",
    "known_failure",
    "refuse_diverged",
]

import math
import signal
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(ValueError):
    """A mistake that the person can mend: commands print it as one line and exit with code 2.

    The message names what is wrong and the valid choices. Anything else that is raised is a bug
    of ours and keeps its traceback.
    """


class Unreadable(UserError):
    """An image file that cannot be read, or several."""


class Stopped(Exception):
    """A run was asked to stop; last.ckpt holds the step that it had reached."""


class Diverged(UserError):
    """What a training came to is not finite; `what` says which, and commands exit with code 1.

    A run ends at the step where its logged training loss is, and saves nothing from there on; at
    its end its weights, held-out loss and score are checked too.
    """

    def __init__(self, what: str, step: int | None = None) -> None:
        super().__init__(what if step is None else f"{what} at step {step}")
        self.what, self.step = what, step

    @classmethod
    def of(cls, results: Mapping[str, Any] | None) -> "Diverged | None":
        """Returns how what has these results diverged, None if it did not."""
        results = results or {}
        if "diverged_at" in results:
            what = results.get("diverged") or "the loss is not finite"
            return cls(what, results["diverged_at"])
        for key in ("loss", "score"):
            if (value := results.get(key, 0)) is None or not math.isfinite(value):
                return cls(f"the {key} is not finite", results.get("steps"))
        return None


def refuse_diverged(path: object, results: Mapping[str, Any] | None) -> None:
    """Raises UserError if the results of the run at a path say that it diverged."""
    if diverged := Diverged.of(results):
        raise UserError(
            f"{path} diverged, {diverged}: its end cannot be used; "
            "milestones from before are valid, with --checkpoint step=N"
        )


def choices(what: str, given: object, valid: Iterable[object]) -> UserError:
    """Returns the error for a value that is not among the valid ones, which it lists."""
    return UserError(f"unknown {what} {given!r}; valid: {', '.join(map(str, valid))}")


def is_utf8(text: str) -> bool:
    """Returns whether a text can be written: one from other bytes, or with half a character, not.

    Python has these as lone surrogates.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def known_failure(error: Exception) -> str | None:
    """Returns one line for a failure that is not ours but the machine's; None for any other."""
    text = str(error).strip()
    first = text.partition("\n")[0]
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of memory on the GPU: {first}"
    if text.startswith("DataLoader worker"):  # torch's words, wherever it was that one died
        names = (s.name for s in signal.Signals if f"signal: {signal.strsignal(s)}" in text)
        name = next(names, None)
        return (
            f"a data worker {f'was killed by {name}' if name else 'ended'}, mostly for lack of "
            "memory or of /dev/shm; with a smaller --data.workers (0: none) the same command goes "
            "on from the last checkpoint"
        )
    if text.startswith("Could not determine home directory"):  # Python's words for expanduser
        return "a path begins with ~NAME, and there is no such user; give the whole path"
    if any(f"Connection {how} by peer" in text for how in ("closed", "reset")):
        return "another process of this run has ended; what it said tells why"
    return None
