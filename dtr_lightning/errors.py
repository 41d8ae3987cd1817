"""What is no bug: a person's mistake, and a wish to stop."""

__all__ = ["Stopped", "UserError", "choices"]

from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the person can mend: commands print it as one line and exit with code 2.

    The message names what is wrong and the valid choices. Anything else that is raised is a bug
    of ours and keeps its traceback.
    """


class Stopped(Exception):
    """A run was asked to stop; last.ckpt holds the step that it had reached."""


def choices(what: str, given: object, valid: Iterable[object]) -> UserError:
    """Returns the error for a value that is not among the valid ones, which it lists."""
    return UserError(f"unknown {what} {given!r}; valid: {', '.join(map(str, valid))}")
