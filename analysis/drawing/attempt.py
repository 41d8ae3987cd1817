"""Keeps a figure that fails from ending the others: one line for a reader, a file for the bug."""

__all__ = ["attempt"]

import traceback
from collections.abc import Callable
from pathlib import Path

from analysis.tables.text import write_texts
from dtr_lightning.errors import UserError


def attempt(name: str, directory: Path, work: Callable[[], None]) -> str:
    """Does the work of a figure; returns one line on the bug that ended it, empty if none did.

    The traceback goes to NAME.error.txt in the directory. A UserError is raised on.
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
