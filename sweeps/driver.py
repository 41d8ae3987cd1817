"""Runs a sweep: claims waiting points, trains each in its own process, then draws and tabulates.

Any number of commands may work in one directory at once; each is a driver of its own slots.
"""

__all__ = ["Outcome", "prepare", "run_sweep"]

import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from dtr_lightning.run import find_runs
from sweeps.child import Message, Train, train_run
from sweeps.folder import Folder
from sweeps.plan import Sweep, read, resolve_all
from sweeps.report import diverged, report
from sweeps.study import HEARTBEAT, Claim, Study
from sweeps.view import View, make_view
from sweeps.workers import Workers, look

ATTEMPTS = 2  # of a trial whose process dies in silence, in one command
STOPS = (signal.SIGINT, signal.SIGTERM)
LOOK = 2.0  # seconds between two looks at what other commands did


class Outcome(NamedTuple):
    """What became of a sweep: results by run name, one line for each point without sound ones."""

    directory: Path
    results: dict[str, dict[str, Any]]
    failed: dict[str, str]
    stopped: bool


def prepare(
    sweep: str | Path,
    *,
    out: str | Path | None = None,
    train: Train = train_run,
    warm: bool = True,
    **reading: Any,
) -> tuple[Sweep, Folder, Workers]:
    """Returns the resolved plan, its directory and the workers; writes nothing.

    `warm` starts the workers' imports beside this process's own, if the directory lacks results.
    The rest is what `plan.read` takes.
    """
    recipe = read(sweep, **reading)
    kinds = [f"-{kind}" for kind in ("paper", "smoke") if reading.get(kind)]
    folder = Folder(out or Path("runs") / "".join([recipe.name, *kinds]))
    workers = Workers(folder, train)
    runs = find_runs([folder.path]) if folder.path.is_dir() else []
    done = sum(run.results_file.exists() for run in runs)
    if warm and done < len(recipe.assignments):
        workers.warm()
    return resolve_all(recipe), folder, workers


def run_sweep(
    sweep: str | Path = "alpha_beta",
    *,
    workers: int | None = None,
    storage: str | None = None,
    out: str | Path | None = None,
    console: Console | None = None,
    train: Train = train_run,
    **reading: Any,
) -> Outcome:
    """Trains what is missing of a sweep (a shipped name or a YAML's path), draws and tabulates.

    `reading` is what `plan.read` takes: seeds, smoke, paper, options. Ctrl-C stops it: every trial
    saves its state and the same call goes on. A call in a script needs the guard `if __name__ ==
    "__main__":`, as trials are processes. UserError for a mistake in the sweep, a directory of
    another sweep and a database that cannot be used.
    """
    console = console or Console()
    plan, folder, crew = prepare(sweep, out=out, train=train, **reading)
    folder.prepare(plan)
    with folder.owner() as owner:
        study = Study(plan, folder, owner, storage)
        with study.guard():
            study.plan()
            session = _Session(study, crew, make_view(plan, console))
            waiting, running = study.open()
            if waiting or running:
                crew.divide(look(), workers, waiting)
                session.work()
    results = {
        point.name: found
        for point in plan.points
        if (found := folder.run(point).results) is not None
    }
    failed = session.failed | diverged(plan, results)
    if not session.stopped:
        report(plan, folder, results, failed, console)
    return Outcome(folder.path, results, failed, session.stopped)


class _Session:
    """One command's work on a study, from the first claim to the last message."""

    def __init__(self, study: Study, workers: Workers, view: View) -> None:
        self.study, self.workers, self.view = study, workers, view
        self.failed: dict[str, str] = {}
        self.lost: Counter[str] = Counter()
        self.seen: set[str] = set()
        self.interrupts = self.heeded = 0
        self._look_around()

    @property
    def stopped(self) -> bool:
        """Whether a person stopped it before the end."""
        return self.heeded > 0

    def work(self) -> None:
        """Trains until nothing waits and nothing runs here or elsewhere, or a person stops it."""
        with self._interruptible(), contextlib.closing(self.workers), self.view:
            look = beat = 0.0
            while True:
                self._heed_interrupts()
                if self.workers.free and time.monotonic() >= look:
                    self._fill()
                    if self.workers.free:
                        look = time.monotonic() + LOOK
                        self.study.recover()
                        self._look_around()
                        if not self.workers.running and not any(self.study.open()):
                            return
                if not self.workers.running and self.stopped:
                    return
                if time.monotonic() >= beat:
                    beat = time.monotonic() + HEARTBEAT
                    for claim, _, _ in self.workers.running.values():
                        self.study.beat(claim.trial_id)
                for claim, message in self.workers.poll(0.25):
                    self._hear(claim, message)
                    if message.kind != "progress":
                        look = 0.0

    def _fill(self) -> None:
        while self.workers.free and not self.interrupts and (claim := self.study.claim()):
            self.view.start(claim.point)
            self.workers.start(claim)

    def _hear(self, claim: Claim, message: Message) -> None:
        trial_id, point = claim
        if message.kind == "progress":
            self.view.progress(point, message.value)
        elif message.kind == "done":
            self.study.finish(trial_id, message.value)
            self.seen.add(point.name)
            self.view.finish(point, message.value)
        elif message.kind == "failed":
            self._fail(claim, message.value)
        elif self.stopped:
            self.study.give_back(trial_id)
            saved = message.kind == "stopped"
            self.view.leave(point, "state saved" if saved else "ended; last checkpoint stays")
        else:
            self.lost[point.name] += 1
            reason = message.value or "stopped by a signal"
            if self.lost[point.name] == ATTEMPTS:
                self._fail(claim, reason)
            else:
                self.study.give_back(trial_id)
                self.view.leave(point, f"{reason}; goes on from its last checkpoint")

    def _fail(self, claim: Claim, reason: str) -> None:
        self.study.fail(claim.trial_id, reason)
        self.failed[claim.point.name] = reason
        self.view.leave(claim.point, f"failed: {reason}")

    def _look_around(self) -> None:
        """Counts the points that are done but not by this command."""
        mine = {claim.point.name for claim, _, _ in self.workers.running.values()}
        for point in self.study.sweep.points:
            if point.name in self.seen | mine:
                continue
            if (results := self.study.folder.run(point).results) is not None:
                self.seen.add(point.name)
                self.failed.pop(point.name, None)
                self.view.stored(point, results)

    def _heed_interrupts(self) -> None:
        if self.interrupts == self.heeded:
            return
        if not self.heeded:
            self.view.say("stopping: the trials save their state; once more ends them at once")
            self.workers.stop()
        else:
            self.workers.kill()
        self.heeded = self.interrupts

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Counts Ctrl-C and SIGTERM instead of raising in the middle of a transaction."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def count(*_: Any) -> None:
            self.interrupts += 1

        before = {number: signal.signal(number, count) for number in STOPS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
