"""Optuna keeps what became of a sweep's points: a trial per training, running, waiting or finished.

A point has no trial until a command takes it: a trial is made, or taken up again, in one step under
a lock, so any number of commands share a plan without a scheduler. What is done is read from the
run directories; the study follows them. A trial whose owner died goes back to waiting: at once on
the owner's machine, where a free lock tells, elsewhere when it gave no sign of life for `GRACE`
seconds of the observer's own clock: clocks are never compared.
"""

__all__ = ["Claim", "Study"]

import json
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial, TrialState

from dtr_lightning.errors import UserError
from sweeps.engine.database import retry_while_unavailable
from sweeps.engine.optimisers import make_sampler
from sweeps.engine.plan import Point
from sweeps.engine.records import Records

REPEATS = 50  # settings in a row that were tried before: a search has nothing new to try


class Claim(NamedTuple):
    """A trial that this command owns, and the point to train for it."""

    trial_id: int
    point: Point


class Study(Records):
    """The plan of a sweep: what waits, who takes it, what a search tries next."""

    @retry_while_unavailable
    def plan(self, retry: bool = False, whole: bool = False) -> None:
        """Brings the study up to date with the run directories.

        `retry` lets failed points wait again, `whole` pruned ones, which then go on to their end.
        """
        self.trials()  # the first reading of many trials takes seconds: not under the lock
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
                    if state == TrialState.WAITING:
                        self._finish(trial._trial_id, results)
                    elif state != TrialState.RUNNING:
                        self._add(point, results)
                elif (retry and state == TrialState.FAIL) or (whole and state == TrialState.PRUNED):
                    self._add(point, like=trial, **({"whole": True} if whole else {}))

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
                elif state == TrialState.WAITING and self._take(trial_id):
                    return self._claim(trial_id, trial.user_attrs["point"])
            point = self._next(trials)
            if point is not None:
                trial_id = self._add(point, owner=self.owner)
                self.points[point.name] = point
                return self._claim(trial_id, point.name)
            return self._ask(trials)

    def _claim(self, trial_id: int, name: str) -> Claim:
        if self.points[name].config is None:
            for point in self.sweep.points_of(self.points[name].assignment):
                self.points[point.name] = point
        return Claim(trial_id, self.points[name])

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
        """Returns a setting that the search proposes; one that was tried before is answered."""
        values = {trial.user_attrs["point"]: trial.values for trial in trials}
        for _ in range(REPEATS):
            if not self._budget(trials):
                return None
            self.study.sampler = make_sampler(self.sweep.recipe, len(self.study.trials))
            self.database.hold()
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
                found = values[point.name]
                state = TrialState.FAIL if found is None else TrialState.COMPLETE
                self._set(trial_id, repeats=point.name)
                self.storage.set_trial_state_values(trial_id, state, found)
                continue
            self._set(trial_id, owner=self.owner, host=self.host)
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
        return spent < 3600 * recipe.hours

    @retry_while_unavailable
    def recover(self) -> None:
        """Gives back the trials whose owner is dead; those with results are finished."""
        with self.database.lock():
            self._recover()

    def _recover(self) -> None:
        self.trials()  # makes the points of a search known
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            name, trial_id = trial.user_attrs.get("point"), trial._trial_id
            point = self.points.get(name)
            if not self._dead(trial, self.folder.run(point) if point else None):
                continue
            if point and (results := self.folder.results(point)) is not None:
                self._finish(trial_id, results)
            else:
                self.storage.set_trial_state_values(trial_id, TrialState.WAITING)

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
