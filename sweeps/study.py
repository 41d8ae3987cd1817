"""Optuna keeps the plan: one trial per point, waiting, running or finished.

Points are added once with their parameters and are claimed by one atomic change of state, so two
commands share a plan without a scheduler. What is done is read from the run directories; the study
follows them. A trial whose owner died goes back to waiting: at once on the owner's machine, where
a free lock tells, and after `GRACE` seconds without a heartbeat elsewhere.
"""

__all__ = ["HEARTBEAT", "Claim", "Study"]

import contextlib
import math
import socket
import sqlite3
import warnings
from collections.abc import Iterator
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning, OptunaError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from dtr_lightning.errors import UserError
from dtr_lightning.naming import config_hash
from sweeps.folder import Folder
from sweeps.plan import Point, Sweep

HEARTBEAT = 30.0  # seconds between two signs of life
GRACE = 300  # seconds without one until another machine's trial counts as dead


class Claim(NamedTuple):
    """A trial that this command owns, and the point to train for it."""

    trial_id: int
    point: Point


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _distributions(points: tuple[Point, ...]) -> dict[str, BaseDistribution]:
    """Returns Optuna's space: a range where all values of an axis are numbers, else choices."""
    axes: dict[str, list[Any]] = {}
    for point in points:
        for key, value in point.params.items():
            axes.setdefault(key, []).append(value)
    return {
        key: FloatDistribution(min(values), max(values))
        if all(map(_number, values))
        else CategoricalDistribution(sorted(set(map(str, values))))
        for key, values in axes.items()
    }


class Study:
    """The plan of one sweep in one directory, as one command (its `owner`) sees it."""

    def __init__(self, sweep: Sweep, folder: Folder, owner: str, url: str | None = None) -> None:
        self.sweep, self.folder, self.owner = sweep, folder, owner
        self.host = socket.gethostname()
        self.url = url or f"sqlite:///{folder.database.resolve()}"
        self.points = {point.name: point for point in sweep.points}
        self.distributions = _distributions(sweep.points)
        with self.guard(), folder.lock():
            self.storage, self.study = self._open()

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turns what a database can raise into one line that names it, without its password."""
        try:
            yield
        except (OptunaError, SQLAlchemyError, ImportError, RuntimeError, sqlite3.Error) as error:
            try:
                url = make_url(self.url).render_as_string(hide_password=True)
            except SQLAlchemyError:
                url = repr(self.url)
            cause = " ".join(str(error.__cause__ or error).split("\n")[0].split())
            raise UserError(f"the database {url} cannot be used: {cause}") from error

    def _open(self) -> tuple[optuna.storages.RDBStorage, optuna.Study]:
        arguments = {}
        if make_url(self.url).get_backend_name() == "sqlite":
            arguments = {"connect_args": {"timeout": 60}}
            with contextlib.closing(sqlite3.connect(make_url(self.url).database)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", ExperimentalWarning)
        storage = optuna.storages.RDBStorage(
            self.url, arguments, heartbeat_interval=int(2 * HEARTBEAT), grace_period=GRACE
        )
        # Optuna holds the choices of a study fixed: a grid with new ones gets a study beside.
        fixed = sorted(
            (key, value.choices)
            for key, value in self.distributions.items()
            if isinstance(value, CategoricalDistribution)
        )
        text = repr((config_hash(self.sweep.config), self.sweep.metric, fixed))
        study = optuna.create_study(
            storage=storage,
            study_name=f"{self.sweep.name}-{sha256(text.encode()).hexdigest()[:6]}",
            direction=self.sweep.direction,
            load_if_exists=True,
        )
        return storage, study

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False, states=states or None)
        return [trial for trial in trials if trial.user_attrs.get("point") in self.points]

    def plan(self) -> None:
        """Adds a trial for every point that has none; failed points wait again.

        A point whose run is done gets a finished trial if it lacks one.
        """
        with self.folder.lock():
            self._recover()
            known = {trial.user_attrs["point"]: trial for trial in self._trials()}
            for name, point in self.points.items():
                trial, results = known.get(name), self.folder.run(point).results
                finished = trial is not None and (
                    trial.state == TrialState.COMPLETE or "diverged" in trial.user_attrs
                )
                if results is None and (trial is None or trial.state.is_finished()):
                    self._add(point)
                elif results is not None and trial is not None and not trial.state.is_finished():
                    if trial.state == TrialState.WAITING:
                        self.finish(trial._trial_id, results)
                elif results is not None and not finished:
                    self._add(point, results)

    def _add(self, point: Point, results: dict[str, Any] | None = None) -> None:
        numbers = {key for key, d in self.distributions.items() if isinstance(d, FloatDistribution)}
        trial = create_trial(
            state=TrialState.WAITING,
            params={k: v if k in numbers else str(v) for k, v in point.params.items()},
            distributions={key: self.distributions[key] for key in point.params},
            user_attrs={"point": point.name},
        )
        if results is None:
            self.study.add_trial(trial)
            return
        score = results.get(self.sweep.metric)
        trial.datetime_start = trial.datetime_complete = datetime.now()
        if _number(score) and math.isfinite(score):
            trial.state, trial.values = TrialState.COMPLETE, [score]
        else:
            trial.state = TrialState.FAIL
            trial.set_user_attr("diverged", True)
        self.study.add_trial(trial)

    def claim(self) -> Claim | None:
        """Takes one waiting trial for this command; None if nothing waits."""
        with self.folder.lock():
            for trial in self._trials(TrialState.WAITING):
                trial_id = trial._trial_id
                if self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                    self.storage.record_heartbeat(trial_id)
                    self.storage.set_trial_user_attr(trial_id, "host", self.host)
                    self.storage.set_trial_user_attr(trial_id, "owner", self.owner)
                    return Claim(trial_id, self.points[trial.user_attrs["point"]])
        return None

    def beat(self, trial_id: int) -> None:
        """Records that a trial is alive."""
        self.storage.record_heartbeat(trial_id)

    def finish(self, trial_id: int, results: dict[str, Any]) -> None:
        """Records the results of a trial; a score that is not finite marks it as diverged."""
        score = results.get(self.sweep.metric)
        with contextlib.suppress(UpdateFinishedTrialError):  # another machine gave it up
            if _number(score) and math.isfinite(score):
                self.storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [score])
            else:
                self.storage.set_trial_user_attr(trial_id, "diverged", True)
                self.storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def fail(self, trial_id: int, reason: str) -> None:
        """Records that a trial failed and why; its point waits again when a command plans."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self.storage.set_trial_user_attr(trial_id, "reason", reason)
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def give_back(self, trial_id: int) -> None:
        """Lets a trial of this command wait again, for whoever comes next."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self.storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def recover(self) -> None:
        """Gives back the trials whose owner is dead; those with results are finished."""
        with self.folder.lock():
            self._recover()

    def _recover(self) -> None:
        running = self._trials(TrialState.RUNNING)
        for trial in running:
            point, trial_id = self.points[trial.user_attrs["point"]], trial._trial_id
            run, owner = self.folder.run(point), trial.user_attrs.get("owner")
            if trial.user_attrs.get("host", self.host) != self.host:
                continue
            if (owner and self.folder.alive(owner)) or run.in_use():
                self.beat(trial_id)  # a lock tells more than a clock that slept
            elif run.results is not None:
                self.finish(trial_id, run.results)
            else:
                self.give_back(trial_id)
        optuna.storages.fail_stale_trials(self.study)
        ids = {trial._trial_id for trial in running}
        waiting = {trial.user_attrs["point"] for trial in self._trials(TrialState.WAITING)}
        for trial in self._trials(TrialState.FAIL):
            name = trial.user_attrs["point"]
            stale = trial._trial_id in ids and "diverged" not in trial.user_attrs
            if stale and name not in waiting:
                self._add(self.points[name], self.folder.run(self.points[name]).results)

    def open(self) -> tuple[int, int]:
        """Returns how many points wait and how many are being trained, by anyone."""
        waiting = len(self._trials(TrialState.WAITING))
        return waiting, len(self._trials(TrialState.RUNNING))
