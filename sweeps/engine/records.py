"""What Optuna's study keeps of a sweep: a trial per training, and how one is made and ended."""

__all__ = ["GRACE", "Records", "number"]

import contextlib
import json
import math
import socket
import time
from datetime import datetime
from hashlib import sha256
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from dtr_lightning.errors import Diverged
from dtr_lightning.rundir.naming import config_hash, settings
from dtr_lightning.rundir.run import Run
from sweeps.engine.database import Database, retry_while_unavailable
from sweeps.engine.folder import Folder
from sweeps.engine.optimisers import make_pruner
from sweeps.engine.plan import Point, Sweep

GRACE = 300.0  # seconds without a sign of life until another machine's trial counts as dead


def number(value: Any) -> bool:
    """Returns whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _distributions(points: tuple[Point, ...]) -> dict[str, BaseDistribution]:
    """Returns Optuna's space: a range where all values of an axis are numbers, else choices."""
    axes: dict[str, list[Any]] = {}
    for point in points:
        for key, value in point.params.items():
            axes.setdefault(key, []).append(value)
    return {
        key: FloatDistribution(min(values), max(values))
        if all(map(number, values))
        else CategoricalDistribution(sorted(set(map(str, values))))
        for key, values in axes.items()
    }


class Records:
    """The trials of one sweep in one directory, as one command (its `owner`) sees them."""

    def __init__(self, sweep: Sweep, folder: Folder, owner: str, database: Database) -> None:
        self.sweep, self.folder, self.owner, self.database = sweep, folder, owner, database
        self.host = socket.gethostname()
        self.points = {point.name: point for point in sweep.points}
        self.distributions = _distributions(sweep.points)
        self.beats: dict[int, tuple[Any, float]] = {}
        with database.guard():
            self.storage, self.study = self._open()

    @retry_while_unavailable
    def _open(self) -> tuple[RDBStorage, optuna.Study]:
        storage = self.database.open()
        # Optuna holds the choices of a study fixed: a grid with new ones gets a study beside.
        recipe = self.sweep.recipe
        fixed = sorted(
            (key, value.choices)
            for key, value in self.distributions.items()
            if isinstance(value, CategoricalDistribution)
        )
        asked: list[Any] = [config_hash(settings(self.sweep.config)), recipe.objectives, fixed]
        if recipe.space:
            asked += [recipe.kind, recipe.space]
        with self.database.lock():
            study = optuna.create_study(
                storage=storage,
                study_name=f"{self.folder.study}-{sha256(repr(asked).encode()).hexdigest()[:6]}",
                directions=list(recipe.objectives.values()),
                pruner=make_pruner(recipe),
                load_if_exists=True,
            )
            if len(recipe.objectives) > 1 and study.metric_names is None:
                study.set_metric_names(list(recipe.objectives))
        return storage, study

    def trials(self) -> list[FrozenTrial]:
        """Returns the trials of this sweep's points, oldest first.

        Those of a search make its points known.
        """
        trials = self.study.get_trials(deepcopy=False)
        if self.sweep.recipe.space:
            for trial in trials:
                name = trial.user_attrs.get("point")
                if name and name not in self.points:
                    point = Point(name, json.loads(trial.user_attrs["params"]))
                    if point.seed < self.sweep.recipe.seeds:
                        self.points[name] = point
        return [trial for trial in trials if trial.user_attrs.get("point") in self.points]

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
            trial.user_attrs |= {"host": self.host, "owner": owner}
        elif results is not None:
            trial.datetime_start = trial.datetime_complete = datetime.now()
            if (values := self._values(results)) is not None:
                trial.state, trial.values = TrialState.COMPLETE, values
            else:
                trial.state = TrialState.FAIL
                trial.user_attrs |= {"diverged": True}
        self.database.hold()
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
        values = [results.get(metric) for metric in self.sweep.recipe.objectives]
        return values if all(map(number, values)) else None

    def _take(self, trial_id: int) -> bool:
        self.database.hold()
        if not self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):
            return False
        self._set(trial_id, owner=self.owner, host=self.host)
        return True

    def _set(self, trial_id: int, **attributes: Any) -> None:
        for key, value in attributes.items():
            self.storage.set_trial_user_attr(trial_id, key, value)

    def _mine(self, trial_id: int) -> bool:
        """Returns whether a trial still runs for this command; another may have given it up."""
        trial = self.storage.get_trial(trial_id)
        return trial.state == TrialState.RUNNING and trial.user_attrs.get("owner") == self.owner

    @retry_while_unavailable
    def beat(self, trial_id: int, number: int) -> bool:
        """Records a sign of life; returns whether the trial is still this command's."""
        if not self._mine(trial_id):
            return False
        self._set(trial_id, beat=number)
        return True

    @retry_while_unavailable
    def report(self, trial_id: int, step: int, value: float) -> bool:
        """Records a score on the way; returns whether the trial is to be pruned."""
        if not self._mine(trial_id) or not number(value):
            return False
        self.storage.set_trial_intermediate_value(trial_id, step, value)
        trial = self.storage.get_trial(trial_id)
        pruning = self.sweep.recipe.pruning and "whole" not in trial.user_attrs
        return bool(pruning) and self.study.pruner.prune(self.study, trial)

    @retry_while_unavailable
    def finish(self, trial_id: int, results: dict[str, Any]) -> None:
        """Records the results of a trial; a metric that is not finite marks it as diverged."""
        with contextlib.suppress(UpdateFinishedTrialError):  # another machine gave it up
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
            if self._mine(trial_id):
                self._set(trial_id, **attributes)
                self.storage.set_trial_state_values(trial_id, state)

    def _dead(self, trial: FrozenTrial, run: Run | None) -> bool:
        owner, host = trial.user_attrs.get("owner", ""), trial.user_attrs.get("host", self.host)
        if host == self.host:  # a lock tells more than a clock
            return not self.folder.alive(owner) and not (run and run.in_use())
        beat, now = (owner, trial.user_attrs.get("beat", 0)), time.monotonic()
        seen, since = self.beats.get(trial._trial_id, (None, now))
        if beat != seen:
            self.beats[trial._trial_id] = (beat, now)
            return False
        return now - since > GRACE
