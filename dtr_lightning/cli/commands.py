"""What the commands share: mistakes as one line, signals as a clean stop, a quiet Lightning.

Imports nothing heavy: a mistake or Ctrl-C is answered while torch is still being loaded.
"""

__all__ = [
    "STOPS",
    "Options",
    "check_file",
    "check_utf8",
    "command",
    "in_our_words",
    "loading",
    "once",
    "quiet",
    "stop_on_signals",
    "whole",
]

import argparse
import difflib
import errno
import logging
import math
import os
import re
import shlex
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import wraps
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any, NoReturn, TextIO

from dtr_lightning.errors import Diverged, Stopped, UserError, is_utf8, known_failure

MISTAKES = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR),
    *(errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
}
INTERRUPTED = 130
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the last is SLURM's before the end
ONCE = 0.5  # seconds in which signals count as one
# argparse's messages, and ours; an option is named by its last, long form
OPTION = r"argument (?:.*/)?(\S+): "
WORDS = (
    (OPTION + r"ignored explicit argument '(.*)'", "{0} takes no value; got '{1}', give {0} alone"),
    (OPTION + "expected one argument", "{0} needs a value"),
    (OPTION + "expected at least one argument", "{0} needs one value or more"),
    (
        OPTION + r"invalid choice: '(.*)' \(choose from (.*)\)",
        "bad value '{1}' for {0}; valid: {2}",
    ),
    (OPTION + "invalid (?:int|whole) value: '(.*)'", "{0} must be a whole number; got '{1}'"),
    (OPTION + "invalid float value: '(.*)'", "{0} must be a number; got '{1}'"),
    ("the following arguments are required: (.*)", "give {0}"),
)


class Options(argparse.ArgumentParser):
    """A parser of few options that says what is wrong in one line.

    Args:
        description: what the command does.
        may_be_empty: options of which an empty text is a value, as of a prompt.
        more: options that another parser takes, to be listed beside these.
    """

    def __init__(
        self,
        description: str | None,
        may_be_empty: Collection[str] = (),
        more: Collection[str] = (),
    ) -> None:
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.may_be_empty, self.more = may_be_empty, more

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Returns the options, and the words that are none; UserError for words without a text."""
        words = sys.argv[1:] if args is None else list(args)
        check_utf8(words)
        same = {option.replace("_", "-"): option for option in self._option_string_actions}
        option = None
        for word in words:
            equals, value = "", word
            if word.startswith("--"):
                option, equals, value = word.partition("=")
                if (right := same.get(option.replace("_", "-"), option)) != option:
                    raise UserError(f"unknown option {option!r}; write {right}")
            if not value and (equals or not word) and option not in self.may_be_empty:
                name = option or "an argument"
                raise UserError(f"{name} is empty; give a value, or leave it out")
        return super().parse_known_args(words, namespace)

    def names(self) -> list[str]:
        """Returns the options, but for help."""
        names = (action.option_strings[-1:] for action in self._actions)
        return [name for one in names for name in one if name != "--help"]

    def error(self, message: str) -> NoReturn:
        """Raises UserError; of an unknown option, with the valid ones, near ones first."""
        if (line := in_our_words(message)) is not None:
            raise UserError(line)
        options = ["--help", *self.names(), *self.more]
        given = message.partition(": ")[2].split()[:1]
        near = difflib.get_close_matches(given[0], options) if given else []
        options = dict.fromkeys([*near, *options])
        raise UserError(f"{message}; valid options: {', '.join(options)}")


def in_our_words(message: str) -> str | None:
    """Returns argparse's message of one option as a line; None for what is no option at all."""
    for pattern, line in WORDS:
        if match := re.fullmatch(pattern, message, re.DOTALL):
            name, *more = match.groups()
            return line.format(name, *(text.replace("'", "") for text in more))
    return message if message.startswith("argument ") else None


def whole(text: str) -> int:
    """Returns a whole number from 1, of an option whose `type` it is."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(text)


def check_utf8(words: Sequence[str]) -> None:
    """Raises UserError for a word of a command line that is not in UTF-8: no file can hold it."""
    for word in words:
        if not is_utf8(word):
            raise UserError(
                f"{word!a} is not in UTF-8; type it in UTF-8, or rename the file that it names"
            )


def check_file(option: str, path: str, suffix: str) -> None:
    """Raises UserError, before the work, for a file that cannot be written at its end."""
    folder = Path(path).parent
    try:
        if not path.endswith(suffix) or not folder.is_dir() or Path(path).is_dir():
            raise UserError(
                f"{option} {path} must end in {suffix} and lie in a directory that exists"
            )
        with tempfile.TemporaryFile(dir=folder):  # root may write what nobody may
            pass
        if Path(path).exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO).lower()
        raise UserError(f"{option} {path} cannot be written: {reason}") from error


def loading(file: TextIO | None = None) -> None:
    """Says, on stdout by default, that PyTorch and more is being imported, which takes seconds.

    Commands whose stdout is read by scripts say it on stderr. Silent where it is imported already
    and in all processes of a group but the first.
    """
    others = any(os.environ.get(k, "0") != "0" for k in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    if "torch" not in sys.modules and not others:
        print("loading ...", file=file or sys.stdout, flush=True)


def command(main: Callable[..., int | None]) -> Callable[..., int | None]:
    """Wraps a command's main: a person's mistake becomes one line and exit code 2.

    What has diverged is one line too, and exit code 1. Ctrl-C says that the same command goes on
    (exit code 130). Bugs keep their traceback.
    """

    @wraps(main)
    def wrapped(*arguments: Any) -> int | None:
        quiet()
        if os.getcwd() not in sys.path:  # where a person's own classes are looked for, last
            sys.path.append(os.getcwd())
        try:
            return main(*arguments)
        except Diverged as error:
            print(f"diverged: {error}", file=sys.stderr)
            return 1
        except UserError as error:
            return _fail(str(error))
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            if error.errno not in MISTAKES:
                raise
            where = f": {error.filename}" if error.filename else ""
            reason = os.strerror(error.errno).lower()
            return _fail(f"{reason}{where}; what was saved before is untouched")
        except (Stopped, KeyboardInterrupt):
            print(f"stopped; go on with: {same_command()}", file=sys.stderr)
            return INTERRUPTED
        except RuntimeError as error:
            if (reason := known_failure(error)) is None:
                raise
            return _fail(reason)

    return wrapped


def same_command() -> str:
    """Returns the command line that was typed; a module of `python -m` by its name."""
    words, spec = list(sys.argv), getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.origin == words[0]:
        words[:1] = ["-m", spec.name.removesuffix(".__main__")]
    return shlex.join([Path(sys.executable).name, *words])


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def once(handler: Callable[..., None]) -> Callable[..., None]:
    """Wraps a handler of signals: one that comes within ONCE seconds of the last is the same.

    Schedulers and `timeout` send a signal to the command and again to its group.
    """
    last = -math.inf

    @wraps(handler)
    def wrapped(*arguments: Any) -> None:
        nonlocal last
        if (now := time.monotonic()) - last > ONCE:
            last = now
            handler(*arguments)

    return wrapped


def stop_on_signals() -> Event:
    """Returns an event that SIGINT, SIGTERM and SIGUSR1 (a scheduler's) set.

    A second Ctrl-C is immediate.
    """
    stop, own = Event(), os.getpid()

    @once
    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a data worker: whoever made it tells it to end
            return
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("\nstopping after this step; Ctrl-C again: at once", file=sys.stderr)

    for number in STOPS:
        signal.signal(number, handle)
    return stop


def quiet() -> None:
    """Silences what Lightning says of every trainer; warnings that a person can act on stay."""
    # importing Lightning resets the level of the packages, but not of the modules that speak
    for module in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.trainer.connectors.checkpoint_connector",
        "lightning.fabric.utilities.rank_zero",
    ):
        logging.getLogger(module).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*is smaller than the logging interval.*",
        ".*`srun` command is available on your system but is not used.*",
        ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*Found keys that are not in the model state dict.*",
    ):
        warnings.filterwarnings("ignore", message=message)
