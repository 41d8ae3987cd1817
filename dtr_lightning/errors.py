"""What is no bug: a person's mistake, a wish to stop, and a training that diverges."""

__all__ = ["Diverged", "Stopped", "UserError", "choices", "refuse_diverged"]

from collections.abc import Iterable, Mapping
from typing import Any


class UserError(ValueError):
    """A mistake that the person can mend: commands print it as one line and exit with code 2.

    The message names what is wrong and the valid choices. Anything else that is raised is a bug
    of ours and keeps its traceback.
    """


class Stopped(Exception):
    """A run was asked to stop; last.ckpt holds the step that it had reached."""


class Diverged(Exception):
    """The training loss that was logged at a step is not finite; nothing is saved from it on."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss is nan at step {step}")
        self.step = step


def refuse_diverged(path: object, results: Mapping[str, Any] | None) -> None:
    """Raises UserError if the results of the run at a path say that it diverged."""
    if results and "diverged_at" in results:
        raise UserError(
            f"{path} diverged, {Diverged(results['diverged_at'])}: its end cannot be used; "
            "milestones from before are valid, with --checkpoint step=N"
        )


def choices(what: str, given: object, valid: Iterable[object]) -> UserError:
    """Returns the error for a value that is not among the valid ones, which it lists."""
    return UserError(f"unknown {what} {given!r}; valid: {', '.join(map(str, valid))}")
