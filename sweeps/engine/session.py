"""One command's work on a sweep, from the first claim to the last message of a trial."""

__all__ = ["Session"]

import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from optuna.trial import TrialState

from dtr_lightning.cli.commands import STOPS, once
from sweeps.engine.child import Message
from sweeps.engine.study import Claim, Study
from sweeps.engine.view import View
from sweeps.engine.workers import Workers

ATTEMPTS = 2  # of a trial whose process dies in silence, in one command
LOOK = 2.0  # seconds between two readings of what other commands did


class Session:
    """Starts trials in free slots and handles their messages until the sweep ends or is stopped."""

    def __init__(self, study: Study, workers: Workers, view: View) -> None:
        self.study, self.workers, self.view = study, workers, view
        self.failed: dict[str, str] = {}
        self.lost: Counter[str] = Counter()
        self.seen: set[str] = set()
        self.pruned: dict[int, tuple[int, float]] = {}  # trial id: step and score
        self.scored: dict[int, int] = {}  # trial id: step of its last score before the end
        self.interrupts = self.handled = self.beats = 0
        self.leaving = False  # another command asked for it: no more claims
        study.database.say, study.database.interrupted = view.say, self._interrupted_twice
        self._count_others()

    @property
    def stopped(self) -> bool:
        """Whether a person stopped it before the end."""
        return self.handled > 0 or self.leaving

    def work(self) -> None:
        """Trains until nothing waits and nothing runs here or elsewhere, or a person stops it."""
        with self._interruptible(), contextlib.closing(self.workers), self.view:
            look = beat = 0.0
            while True:
                self._handle_interrupts()
                if time.monotonic() >= look:
                    look = time.monotonic() + LOOK
                    self._stop_if_asked()
                    if self._fill():
                        self.study.recover()
                        self._count_others()
                        self._fill()
                        if not self.workers.running and not any(self.study.open()):
                            return
                if not self.workers.running and self.stopped:
                    return
                if time.monotonic() >= beat:
                    beat = time.monotonic() + self.study.heartbeat
                    self._beat()
                for claim, message in self.workers.poll(0.25):
                    self._handle(claim, message)
                    if message.kind != "progress":
                        look = 0.0

    def _fill(self) -> bool:
        """Starts trials; returns whether a slot is free and nothing waits."""
        while self.workers.free and not self.stopped and not self.interrupts:
            mine = {claim.trial_id for claim, _, _ in self.workers.running.values()}
            if (claim := self.study.claim(mine)) is None:
                return True
            self.view.start(claim.point)
            self.workers.start(claim)
        return False

    def _beat(self) -> None:
        self.beats += 1
        for claim, _, _ in list(self.workers.running.values()):
            if not self.study.beat(claim.trial_id, self.beats):
                self.workers.kill(claim.trial_id)  # another command took it over

    def _handle(self, claim: Claim, message: Message) -> None:
        trial_id, point = claim
        if message.kind == "progress":
            self.view.progress(point, message.value)
            self._prune(claim, message.value)
        elif message.kind == "done":
            self.study.finish(trial_id, message.value)
            self.seen.add(point.name)
            self.view.finish(point, message.value)
        elif message.kind == "failed":
            self._fail(claim, message.value)
        elif message.kind == "stopped" and trial_id in self.pruned:
            step, score = self.pruned.pop(trial_id)
            run = self.study.folder.run(point)
            run.update_meta(status="pruned", pruned_at=step, pruned_score=score)
            self.study.end(trial_id, TrialState.PRUNED, pruned_at=step)
            self.view.leave(point, f"pruned at step {step}", ends=True)
        elif self.stopped:
            self.study.end(trial_id, TrialState.WAITING)
            saved = message.kind == "stopped"
            self.view.leave(point, "state saved" if saved else "ended; last checkpoint stays")
        else:
            self.lost[point.name] += 1
            reason = message.value or "stopped by a signal"
            if self.lost[point.name] == ATTEMPTS:
                self._fail(claim, reason)
            else:
                self.study.end(trial_id, TrialState.WAITING)
                self.view.leave(point, f"{reason}; goes on from its last checkpoint")

    def _prune(self, claim: Claim, progress: Mapping[str, Any]) -> None:
        """Records a new score of an unfinished trial; stops the trial if it should be pruned."""
        step, value = progress.get("evaluated"), progress.get(self.study.sweep.metric)
        trial_id = claim.trial_id
        if step is None or value is None or self.scored.get(trial_id) == step:
            return
        self.scored[trial_id] = step
        if self.study.should_prune(trial_id, step, value) and progress["done"] < progress["total"]:
            self.pruned[trial_id] = (step, value)
            self.workers.stop(trial_id)

    def _fail(self, claim: Claim, reason: str) -> None:
        self.study.end(claim.trial_id, TrialState.FAIL, reason=reason)
        self.failed[claim.point.name] = reason
        self.view.leave(claim.point, f"failed: {reason}", ends=True)

    def _count_others(self) -> None:
        """Counts the points that other commands finished."""
        mine = {claim.point.name for claim, _, _ in self.workers.running.values()}
        for name in self.study.finished() - self.seen - mine:
            point = self.study.points[name]
            if (results := self.study.folder.results(point)) is not None:
                self.seen.add(name)
                self.failed.pop(name, None)
                self.view.stored(point, results)

    def _stop_if_asked(self) -> None:
        """Stops as `--stop` asked this command to."""
        request = self.study.folder.asked_to_stop(self.study.owner)
        if request and not self.leaving:
            self.view.say("asked to stop: no more trials start here")
            self.leaving = True
        if request == "save" and not self.workers.stopping:
            self.workers.stop()

    def _interrupted_twice(self) -> bool:
        self._handle_interrupts()
        return self.handled > 1

    def _handle_interrupts(self) -> None:
        if self.interrupts == self.handled:
            return
        if not self.handled:
            self.view.say("stopping: the trials save their state; Ctrl-C again ends them at once")
            self.workers.stop()
        else:
            self.workers.kill()
        self.handled = self.interrupts

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Counts Ctrl-C and SIGTERM instead of raising in the middle of a transaction."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        @once
        def count(*_: Any) -> None:
            self.interrupts += 1

        before = {number: signal.signal(number, count) for number in STOPS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
