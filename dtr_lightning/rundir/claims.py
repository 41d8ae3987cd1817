"""Who does which part of some work: locks on numbered parts, which end with their process."""

__all__ = ["Claims"]

import fcntl
import logging
import os
from pathlib import Path

from dtr_lightning.rundir.run import NO_LOCKS


class Claims:
    """Claims on numbered parts: a lock on byte i of one file stands for part i.

    The kernel frees the claims of a process that ends in any way, on whatever node it was. Where
    the file system has no locks `works` is False, and every claim is granted.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.works = path, True
        self.file = path.open("a+b")

    def take(self, part: int, shared: bool = False, wait: bool = False) -> bool:
        """Returns whether this process now holds a part, alone or with others that share it."""
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.lockf(self.file, kind if wait else kind | fcntl.LOCK_NB, 1, part)
        except (BlockingIOError, PermissionError):  # POSIX allows either for one that is held
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            if self.works:
                self.works = False
                logging.getLogger(__name__).warning(
                    "note: the file system of %s has no locks (%s): processes that share the work "
                    "may do parts of it twice",
                    self.path,
                    error.strerror,
                )
        return True

    def free(self, part: int) -> None:
        """Gives a part back."""
        if self.works:
            fcntl.lockf(self.file, fcntl.LOCK_UN, 1, part)

    def removed(self) -> bool:
        """Returns whether the file is no longer what its path names: claims on it hold nothing."""
        try:
            return not os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Gives all parts back."""
        self.file.close()
