"""The one exception that stands for a person's mistake rather than for a bug."""

__all__ = ["UserError", "choices"]

from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the person can mend: commands print it as one line and exit with code 2.

    The message names what is wrong and the valid choices. Anything else that is raised is a bug
    of ours and keeps its traceback.
    """


def choices(what: str, given: object, valid: Iterable[object]) -> UserError:
    """Returns the error for a value that is not among the valid ones, which it lists."""
    return UserError(f"unknown {what} {given!r}; valid: {', '.join(map(str, valid))}")
