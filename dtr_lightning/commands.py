"""What the commands share: mistakes as one line, signals as a clean stop, a quiet Lightning."""

__all__ = ["command", "quiet", "stop_on_signals"]

import errno
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from threading import Event
from types import FrameType

import torch

from dtr_lightning.callbacks import Stopped
from dtr_lightning.errors import UserError

MISTAKES = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is exceeded",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "not a directory",
    errno.EEXIST: "exists and is not a directory",
}
INTERRUPTED = 130


def command(main: Callable[[], int | None]) -> Callable[[], int | None]:
    """Wraps a command's main: a person's mistake becomes one line and exit code 2.

    Ctrl-C says that the same command goes on (exit code 130). Bugs keep their traceback.
    """

    @wraps(main)
    def wrapped() -> int | None:
        quiet()
        try:
            return main()
        except UserError as error:
            return _fail(str(error))
        except torch.OutOfMemoryError as error:
            return _fail(f"out of memory on the GPU: {str(error).splitlines()[0]}")
        except OSError as error:
            if error.errno not in MISTAKES:
                raise
            where = f": {error.filename}" if error.filename else ""
            return _fail(f"{MISTAKES[error.errno]}{where}; what was saved before is untouched")
        except (Stopped, KeyboardInterrupt):
            print(f"stopped; go on with: {same_command()}", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    return wrapped


def same_command() -> str:
    """Returns the command line that was typed."""
    return shlex.join([Path(sys.executable).name, *sys.argv])


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def stop_on_signals() -> Event:
    """Returns an event that SIGINT and SIGTERM set; a second Ctrl-C is immediate."""
    stop = Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return stop


def quiet() -> None:
    """Silences what Lightning says of every trainer; warnings that a person can act on stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*You passed in a `val_dataloader` but have no `validation_step`.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*is smaller than the logging interval.*",
        ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*Found keys that are not in the model state dict.*",
    ):
        warnings.filterwarnings("ignore", message=message)
