"""Draws on when one figure fails: a line names the failure, a file has its traceback."""

__all__ = ["attempt"]

import traceback
from collections.abc import Callable
from pathlib import Path

from analysis.tables.text import write_texts
from dtr_lightning.errors import UserError


def attempt(name: str, directory: Path, work: Callable[[], None]) -> str:
    """Calls work; returns one line on the bug that ended it, or an empty text.

    The traceback goes to NAME.error.txt in the directory. A UserError passes through.
    """
    trace = directory / f"{name}.error.txt"
    try:
        work()
    except UserError:
        raise
    except Exception as error:
        write_texts(directory, {trace.name: traceback.format_exc()})
        why = " ".join(f"{type(error).__name__}: {error}".split())
        return f"failed: {why[:200]}; see {trace}"
    trace.unlink(missing_ok=True)
    return ""
