"""What runs in a trial's own process: one training that obeys, and dies with, its command."""

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
    """What a trial tells its command: progress | done | stopped | failed, and what belongs to it.

    progress comes with a dict (stage, done, total, step, loss, score), done with the results,
    failed with one line.
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
    """Trains one run: what it prints goes to a log, what it reports to the connection.

    The run of a smoke says so in its meta.json, and with it all that is printed of its numbers.
    Signals of a terminal or a scheduler reach this process too; only the command decides what they
    mean.
    """
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    os.environ.update(environment)
    stop = threading.Event()
    threading.Thread(target=_obey, args=(connection, stop), daemon=True).start()
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


def _obey(connection: Connection, stop: threading.Event) -> None:
    """Sets `stop` when the command says so; ends this process when the command is gone."""
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
    # A training without torch, as the tests' stand-in is, need not wait for its import.
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
