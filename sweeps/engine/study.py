"""Optuna keeps what became of a sweep's points: a trial per training, running, waiting or finished.

A point has no trial until a command takes it: a trial is made, or taken up again, in one step under
a lock, so any number of commands share a plan without a scheduler. What is done is read from the
run directories; the study follows them. A trial whose owner died goes back to waiting: at once on
the owner's machine, where a free lock shows it, elsewhere after the grace period that its owner
promised, without a sign of life on the observer's own clock: clocks are never compared.
"""

__all__ = ["Claim", "Study"]

import contextlib
import json
import socket
import time
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from dtr_lightning.errors import Diverged, UserError
from dtr_lightning.rundir.naming import config_hash, settings
from dtr_lightning.rundir.run import Run
from sweeps.engine.database import Database, retry_while_unavailable
from sweeps.engine.folder import Folder
from sweeps.engine.grace import BEATS, GRACE
from sweeps.engine.optimisers import make_pruner, make_sampler
from sweeps.engine.plan import Point, Sweep
from sweeps.engine.values import finite

REPEATS = 50  # settings in a row that were tried before: the space is exhausted


class Claim(NamedTuple):
    """A trial that this command owns, and the point to train for it."""

    trial_id: int
    point: Point


def _distributions(points: tuple[Point, ...]) -> dict[str, BaseDistribution]:
    """Returns Optuna's space: a range where all values of an axis are numbers, else choices."""
    axes: dict[str, list[Any]] = {}
    for point in points:
        for key, value in point.params.items():
            axes.setdefault(key, []).append(value)
    return {
        key: FloatDistribution(min(values), max(values))
        if all(map(finite, values))
        else CategoricalDistribution(sorted(set(map(str, values))))
        for key, values in axes.items()
    }


class Study:
    """The trials of one sweep in one directory, as one command (its `owner`) sees them."""

    def __init__(
        self,
        sweep: Sweep,
        folder: Folder,
        owner: str,
        database: Database,
        grace: float | None = None,
    ) -> None:
        self.sweep, self.folder, self.owner, self.database = sweep, folder, owner, database
        self.grace = GRACE if grace is None else grace
        self.heartbeat = self.grace / BEATS  # seconds between two signs of life
        self.host = socket.gethostname()
        self.points = {point.name: point for point in sweep.points}
        self.distributions = _distributions(sweep.points)
        self.beats: dict[int, tuple[Any, float]] = {}
        with database.guard():
            self.storage, self.study = self._open()

    @retry_while_unavailable
    def _open(self) -> tuple[RDBStorage, optuna.Study]:
        storage = self.database.open()
        # Optuna never changes the choices of a study: a grid with new ones gets another study.
        recipe = self.sweep.recipe
        choices = sorted(
            (option, distribution.choices)
            for option, distribution in self.distributions.items()
            if isinstance(distribution, CategoricalDistribution)
        )
        key: list[Any] = [config_hash(settings(self.sweep.config)), recipe.objectives, choices]
        if recipe.space:
            key += [recipe.kind, recipe.space]
        with self.database.lock():
            study = optuna.create_study(
                storage=storage,
                study_name=f"{self.folder.study}-{sha256(repr(key).encode()).hexdigest()[:6]}",
                directions=list(recipe.objectives.values()),
                pruner=make_pruner(recipe),
                load_if_exists=True,
            )
            if len(recipe.objectives) > 1 and study.metric_names is None:
                study.set_metric_names(list(recipe.objectives))
        return storage, study

    @retry_while_unavailable
    def plan(self, retry: bool = False, whole: bool = False) -> None:
        """Brings the study up to date with the run directories.

        `retry` lets failed points wait again; `whole` pruned ones, which then train to their end.
        """
        attributes: dict[str, Any] = {"whole": True} if whole else {}
        self.trials()  # the first reading of many trials takes seconds: before the lock
        with self.database.lock():
            for params in self.sweep.starts():
                self.study.enqueue_trial(params, skip_if_exists=True)
            self._recover()
            last = {trial.user_attrs["point"]: trial for trial in self.trials()}
            for name, point in self.points.items():
                trial = last.get(name)
                state = trial.state if trial else None
                results = self.folder.results(point)
                if state == TrialState.COMPLETE or (trial and "diverged" in trial.user_attrs):
                    if results is None:
                        self.database.say(f"{point.label}: its results are gone: it goes on")
                        self._add(point, like=trial)
                elif results is not None:
                    if trial and state == TrialState.WAITING:
                        self._finish(trial._trial_id, results)
                    elif state != TrialState.RUNNING:
                        self._add(point, results)
                elif (retry and state == TrialState.FAIL) or (whole and state == TrialState.PRUNED):
                    self._add(point, like=trial, **attributes)

    @retry_while_unavailable
    def claim(self, mine: set[int]) -> Claim | None:
        """Takes one point for this command, whose trials are `mine`; None if nothing waits."""
        with self.database.lock():
            trials = self.trials()
            for trial in trials:
                trial_id, state = trial._trial_id, trial.state
                if state == TrialState.RUNNING and trial.user_attrs.get("owner") == self.owner:
                    if trial_id not in mine:  # made just before the database went away
                        return self._claim(trial_id, trial.user_attrs["point"])
                elif state == TrialState.WAITING and self._take_up(trial_id):
                    return self._claim(trial_id, trial.user_attrs["point"])
            point = self._next(trials)
            if point is not None:
                trial_id = self._add(point, owner=self.owner)
                self.points[point.name] = point
                return self._claim(trial_id, point.name)
            return self._ask(trials)

    def _next(self, trials: list[FrozenTrial]) -> Point | None:
        """Returns the first point without a trial; of a search, a known setting's next seed."""
        known = {trial.user_attrs["point"] for trial in trials}
        if not self.sweep.recipe.space:
            return next((p for p in self.sweep.points if p.name not in known), None)
        seeds: dict[str, list[Point]] = {}
        for name in known:
            seeds.setdefault(self.points[name].setting, []).append(self.points[name])
        for points in seeds.values():
            if len(points) < self.sweep.recipe.seeds:
                every = self.sweep.points_of(points[0].assignment)
                return next(point for point in every if point.name not in known)
        return None

    def _ask(self, trials: list[FrozenTrial]) -> Claim | None:
        """Claims a setting that the search proposes; a repeated one gets its earlier result."""
        values = {trial.user_attrs["point"]: trial.values for trial in trials}
        for _ in range(REPEATS):
            if not self._budget(trials):
                return None
            self.study.sampler = make_sampler(self.sweep.recipe, len(self.study.trials))
            self.database.check_lock()
            trial = self.study.ask()
            trial_id = trial._trial_id
            try:
                point = self.sweep.points_of(self.sweep.ask(trial))[0]
            except UserError as error:
                self._set(trial_id, reason=str(error))
                self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
                self.database.say(f"not a valid setting, not tried: {error}")
                continue
            if point.name in values:
                tried = values[point.name]
                state = TrialState.FAIL if tried is None else TrialState.COMPLETE
                self._set(trial_id, repeats=point.name)
                self.storage.set_trial_state_values(trial_id, state, tried)
                continue
            self._set(trial_id, owner=self.owner, host=self.host, grace=self.grace)
            self._set(trial_id, params=json.dumps(point.params), point=point.name)
            self.points[point.name] = point
            return Claim(trial_id, point)
        self.study.set_user_attr("exhausted", True)
        self.database.say(f"{REPEATS} proposals in a row were tried before: the search ends")
        return None

    def _budget(self, trials: list[FrozenTrial]) -> bool:
        """Returns whether a search may ask for another setting."""
        recipe = self.sweep.recipe
        if not recipe.space or "exhausted" in self.study.user_attrs:
            return False
        if recipe.trials is not None:
            settings = {self.points[trial.user_attrs["point"]].setting for trial in trials}
            return len(settings) < recipe.trials
        spent = sum(trial.user_attrs.get("seconds", 0.0) for trial in trials)
        return recipe.hours is not None and spent < 3600 * recipe.hours

    @retry_while_unavailable
    def recover(self) -> None:
        """Lets the trials of dead owners wait again; finishes those that have results."""
        with self.database.lock():
            self._recover()

    def _recover(self) -> None:
        self.trials()  # adds the points of a search
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            name, trial_id = trial.user_attrs.get("point"), trial._trial_id
            point = self.points.get(name) if name else None
            if not self._is_dead(trial, self.folder.run(point) if point else None):
                continue
            if point and (results := self.folder.results(point)) is not None:
                self._finish(trial_id, results)
            else:
                self.storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def _is_dead(self, trial: FrozenTrial, run: Run | None) -> bool:
        owner, host = trial.user_attrs.get("owner", ""), trial.user_attrs.get("host", self.host)
        if host == self.host:  # a lock is surer than a clock
            return not self.folder.alive(owner) and not (run and run.in_use())
        # while the database was away, nobody could show a sign of life
        beat = (owner, trial.user_attrs.get("beat", 0), self.database.outages)
        now = time.monotonic()
        seen, since = self.beats.get(trial._trial_id, (None, now))
        if beat != seen:
            self.beats[trial._trial_id] = (beat, now)
            return False
        return now - since > trial.user_attrs.get("grace", GRACE)

    @retry_while_unavailable
    def beat(self, trial_id: int, number: int) -> bool:
        """Records a sign of life; returns whether the trial is still this command's."""
        if not self._is_mine(trial_id):
            return False
        self._set(trial_id, beat=number)
        return True

    @retry_while_unavailable
    def should_prune(self, trial_id: int, step: int, value: float) -> bool:
        """Records a score of an unfinished trial; returns whether to prune the trial."""
        if not self._is_mine(trial_id) or not finite(value):
            return False
        self.storage.set_trial_intermediate_value(trial_id, step, value)
        trial = self.storage.get_trial(trial_id)
        return "whole" not in trial.user_attrs and self.study.pruner.prune(self.study, trial)

    @retry_while_unavailable
    def finish(self, trial_id: int, results: dict[str, Any]) -> None:
        """Records the results of a trial; a metric that is not finite marks it as diverged."""
        with contextlib.suppress(UpdateFinishedTrialError):  # another machine took it over
            self._finish(trial_id, results)

    def _finish(self, trial_id: int, results: dict[str, Any]) -> None:
        self._set(trial_id, seconds=results.get("seconds") or 0.0)
        if (values := self._values(results)) is not None:
            self.storage.set_trial_state_values(trial_id, TrialState.COMPLETE, values)
        else:
            self._set(trial_id, diverged=True)
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)

    @retry_while_unavailable
    def end(self, trial_id: int, state: TrialState, **attributes: Any) -> None:
        """Ends a trial of this command without results, or lets it wait again.

        FAIL comes with a `reason`, PRUNED with `pruned_at`, a step.
        """
        with self.database.lock():
            if self._is_mine(trial_id):
                self._set(trial_id, **attributes)
                self.storage.set_trial_state_values(trial_id, state)

    @retry_while_unavailable
    def open(self) -> tuple[int, int]:
        """Returns how many points wait, one for a search that goes on, and how many are trained."""
        trials = self.trials()
        states = [trial.state for trial in trials]
        waiting = states.count(TrialState.WAITING)
        if self.sweep.recipe.space:
            waiting += self._budget(trials) or self._next(trials) is not None
        else:
            known = {trial.user_attrs["point"] for trial in trials}
            waiting += len(self.points.keys() - known)
        return waiting, states.count(TrialState.RUNNING)

    def finished(self) -> set[str]:
        """Returns the names of the points that have results."""
        return {
            trial.user_attrs["point"]
            for trial in self.trials()
            if trial.state == TrialState.COMPLETE or "diverged" in trial.user_attrs
        }

    def ended(self, state: TrialState, attribute: str) -> dict[str, Any]:
        """Returns an attribute of the points whose last trial ended in a state, by name."""
        last = {trial.user_attrs["point"]: trial for trial in self.trials()}
        return {
            name: trial.user_attrs[attribute]
            for name, trial in last.items()
            if trial.state == state and attribute in trial.user_attrs
        }

    def trials(self) -> list[FrozenTrial]:
        """Returns the trials of this sweep's points, oldest first; adds a search's to `points`."""
        trials = self.study.get_trials(deepcopy=False)
        if self.sweep.recipe.space:
            for trial in trials:
                name = trial.user_attrs.get("point")
                if name and name not in self.points:
                    point = Point(name, json.loads(trial.user_attrs["params"]))
                    if point.seed < self.sweep.recipe.seeds:
                        self.points[name] = point
        return [trial for trial in trials if trial.user_attrs.get("point") in self.points]

    def _claim(self, trial_id: int, name: str) -> Claim:
        if self.points[name].config is None:
            for point in self.sweep.points_of(self.points[name].assignment):
                self.points[point.name] = point
        return Claim(trial_id, self.points[name])

    def _add(
        self,
        point: Point,
        results: dict[str, Any] | None = None,
        *,
        like: FrozenTrial | None = None,
        owner: str | None = None,
        **attributes: Any,
    ) -> int:
        """Adds a trial: finished with results, running for an owner, or else waiting."""
        params, distributions = self._params(point) if like is None else (like.params, None)
        trial = create_trial(
            state=TrialState.WAITING,
            params=params,
            distributions=distributions or (like.distributions if like else {}),
            user_attrs={"point": point.name, "params": json.dumps(point.params), **attributes},
        )
        if owner:
            trial.state = TrialState.RUNNING
            trial.datetime_start = datetime.now()
            trial.user_attrs |= {"host": self.host, "owner": owner, "grace": self.grace}
        elif results is not None:
            trial.datetime_start = trial.datetime_complete = datetime.now()
            if (values := self._values(results)) is not None:
                trial.state, trial.values = TrialState.COMPLETE, values
            else:
                trial.state = TrialState.FAIL
                trial.user_attrs |= {"diverged": True}
        self.database.check_lock()
        return self.storage.create_new_trial(self.study._study_id, template_trial=trial)

    def _params(self, point: Point) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """Returns what Optuna knows of a point: of a search, what the same setting had before."""
        if self.sweep.recipe.space:
            for trial in self.study.get_trials(deepcopy=False):
                name = trial.user_attrs.get("point")
                if name in self.points and self.points[name].setting == point.setting:
                    return trial.params, trial.distributions
            return {}, {}
        numbers = {key for key, d in self.distributions.items() if isinstance(d, FloatDistribution)}
        params = {k: v if k in numbers else str(v) for k, v in point.params.items()}
        return params, {key: self.distributions[key] for key in point.params}

    def _values(self, results: dict[str, Any]) -> list[float] | None:
        if Diverged.of(results):
            return None
        objectives = self.sweep.recipe.objectives
        values = [x for metric in objectives if (x := results.get(metric)) is not None]
        return values if len(values) == len(objectives) and all(map(finite, values)) else None

    def _take_up(self, trial_id: int) -> bool:
        self.database.check_lock()
        if not self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):
            return False
        self._set(trial_id, owner=self.owner, host=self.host, grace=self.grace)
        return True

    def _set(self, trial_id: int, **attributes: Any) -> None:
        for key, value in attributes.items():
            self.storage.set_trial_user_attr(trial_id, key, value)

    def _is_mine(self, trial_id: int) -> bool:
        """Returns whether a trial still runs for this command; another may have taken it over."""
        trial = self.storage.get_trial(trial_id)
        return trial.state == TrialState.RUNNING and trial.user_attrs.get("owner") == self.owner
