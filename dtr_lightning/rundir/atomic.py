"""Files that are there whole or not at all, whenever a process dies."""

__all__ = ["PREFIX", "leftovers", "replacing", "telling_of_disk", "write_text", "writing"]

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dtr_lightning.errors import UserError

PREFIX = ".part-"
LONGEST = 255  # bytes of a name


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a path beside to write to; at the end it is flushed to the disk and renamed.

    A reader sees the old file or the new one; where the writing fails the old one stays.
    """
    path = Path(path)
    start = f"{PREFIX}{os.getpid()}-"
    end = os.fsencode(path.name)[len(start) - LONGEST :].decode(errors="ignore")  # with its suffix
    part = path.with_name(start + end)
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def telling_of_disk(path: str | Path) -> Iterator[None]:
    """Raises the OSError, such as a full disk, behind an error of torch's or safetensors' own."""
    try:
        yield
    except Exception as error:
        reason: BaseException | None = error
        while reason is not None and not isinstance(reason, OSError):
            reason = reason.__cause__ or reason.__context__
        if number := re.search(r"os error (\d+)", str(error)):  # what safetensors says
            reason = OSError(int(number[1]), os.strerror(int(number[1])), str(path))
        if reason is None:
            raise
        raise reason from None


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Yields a path as `replacing` does, in a directory that is made if it is not there.

    UserError where the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            yield part
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def write_text(path: str | Path, text: str) -> None:
    """Writes a text whole or not at all, in UTF-8; bytes of names that are not are escaped."""
    with replacing(path) as part:
        part.write_text(text, "utf-8", errors="backslashreplace")


def leftovers(directory: Path) -> Iterator[Path]:
    """Yields what processes that were killed while they wrote have left in a directory."""
    yield from directory.glob(f"{PREFIX}*")
