"""The process of a trial: one training, which its command can stop and which ends with it."""

__all__ = ["Message", "Train", "main", "train_run"]

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from dtr_lightning.cli.commands import STOPS, quiet
from dtr_lightning.errors import UserError, known_failure
from dtr_lightning.rundir.run import Run

# Trains a config in a run directory and returns its results; None if it was stopped.
Train = Callable[
    [dict[str, Any], Path, Callable[[Mapping[str, Any]], None], threading.Event],
    dict[str, Any] | None,
]


class Message(NamedTuple):
    """A message of a trial to its command: progress | done | stopped | failed, and its value.

    progress has a dict (stage, done, total, step, loss, score), done the results, failed one line.
    """

    kind: str
    value: Any = None


def train_run(
    config: dict[str, Any],
    path: Path,
    report: Callable[[Mapping[str, Any]], None],
    stop: threading.Event,
) -> dict[str, Any] | None:
    """Trains and evaluates a run; the default `Train`.

    On several devices this process is the first of a group: Lightning starts the others as
    `python train.py` of the same run, not as another sweep.
    """
    from dtr_lightning.experiment.fit import Stopped, run
    from dtr_lightning.training.launch import forget_launcher

    quiet()
    forget_launcher()
    if config.get("trainer", {}).get("devices") not in (None, 1, "1", "auto"):
        command = Path(__file__).parent.parent.parent / "train.py"
        sys.argv = [str(command), f"--config={Run(path).config_file}", f"--out={path}"]
    try:
        return run(config, path, lambda progress: report(progress._asdict()), stop)
    except Stopped:
        return None


def main(
    connection: Connection,
    train: Train,
    config: dict[str, Any],
    path: Path,
    log: Path,
    environment: Mapping[str, str],
    threads: int,
    smoke: bool = False,
) -> None:
    """Trains one run; prints to a log and sends its progress to the connection.

    smoke: recorded in the run's meta.json, so that all that shows its numbers warns. Signals to
    stop reach this process too, from a terminal or a scheduler; only the command handles them.
    """
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    os.environ.update(environment)
    stop = threading.Event()
    threading.Thread(target=_follow_command, args=(connection, stop), daemon=True).start()
    _print_to(log)
    _use_threads(threads)

    def report(progress: Mapping[str, Any]) -> None:
        connection.send(Message("progress", dict(progress)))

    try:
        if smoke:
            run = Run(path)
            run.prepare(config)
            run.update_meta(smoke=True)
        results = train(config, path, report, stop)
    except UserError as error:
        connection.send(Message("failed", str(error)))
    except Exception as error:
        traceback.print_exc()
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        reason = known_failure(error) or f"{type(error).__name__}: {first}"
        connection.send(Message("failed", reason))
    else:
        connection.send(Message("stopped") if results is None else Message("done", results))


def _follow_command(connection: Connection, stop: threading.Event) -> None:
    """Sets `stop` when the command asks for it; ends this process when the command has ended."""
    try:
        while True:
            connection.recv()
            stop.set()
    except (EOFError, OSError):
        os._exit(1)


def _print_to(log: Path) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _use_threads(threads: int) -> None:
    # a training without torch, such as the tests' stand-in, does without its import
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
