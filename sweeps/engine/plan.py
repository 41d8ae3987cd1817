"""The points of a sweep: assignments of options become resolved configs with the names of runs."""

__all__ = ["Point", "Sweep", "resolve_all"]

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from optuna.trial import BaseTrial, FixedTrial

from dtr_lightning.errors import UserError
from sweeps.engine.recipe import Recipe
from sweeps.engine.space import Choices


class Point(NamedTuple):
    """One training; its name, unique in a sweep, is that of its run directory.

    A point that is only known from the database has no config yet.
    """

    name: str
    params: dict[str, Any]
    config: dict[str, Any] | None = None

    @property
    def label(self) -> str:
        """What a person calls it, for instance `DTR alpha=4 beta=0.8 seed=0`."""
        params = {key.rsplit(".", 1)[-1]: value for key, value in self.params.items()}
        first = params.pop("router", None)
        rest = [f"{key}={value}" for key, value in params.items()]
        return " ".join([str(first), *rest] if first else rest)

    @property
    def seed(self) -> int:
        """The seed of weights, batches, tasks and noise."""
        return self.params["seed"]

    @property
    def assignment(self) -> dict[str, Any]:
        """Its options without the seed."""
        return {key: value for key, value in self.params.items() if key != "seed"}

    @property
    def setting(self) -> str:
        """What it has in common with the same point of another seed."""
        return json.dumps(self.assignment, sort_keys=True)


@dataclass(frozen=True)
class Sweep:
    """A plan: the recipe, its resolved base config and the points that are known beforehand."""

    recipe: Recipe
    config: dict[str, Any]
    points: tuple[Point, ...]
    digests: dict[str, str] = field(default_factory=dict, compare=False)  # of images, read once

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.recipe.name

    @property
    def metric(self) -> str:
        """The number of results.json that is shown, the first one if there are several."""
        return self.recipe.metric

    @property
    def total(self) -> int | None:
        """How many trainings it will be; None for a search for some hours."""
        if self.recipe.kind == "grid":
            return len(self.points)
        return self.recipe.trials and self.recipe.trials * self.recipe.seeds

    @property
    def devices(self) -> int:
        """How many devices a trial uses, the largest number of all points."""
        counts = [point.config["trainer"].get("devices") for point in self.points]
        counts = counts or [self.config["trainer"].get("devices")]
        return max(count if isinstance(count, int) and count > 0 else 1 for count in counts)

    def points_of(self, assignment: Mapping[str, Any]) -> list[Point]:
        """Returns the point of every seed; UserError for an option that is not valid."""
        return list(_points(self.recipe, assignment, self.digests))

    def ask(self, trial: BaseTrial) -> dict[str, Any]:
        """Returns the assignment that a trial of a search proposes.

        An option such as router.alpha is only asked for where the router has it.
        """
        assignment: dict[str, Any] = {}
        # what a choice may have is known once it is made
        for key, axis in sorted(self.recipe.space.items(), key=lambda item: "." in item[0]):
            if self._has(key, assignment):
                assignment[key] = axis.suggest(trial, key)
        return assignment

    @property
    def lowest(self) -> dict[str, Any]:
        """Optuna's parameters of the lowest setting of a search's space."""
        lowest: dict[str, Any] = {}
        for key, axis in self.recipe.space.items():
            lowest |= axis.params(key, axis.examples[0])
        return lowest

    def known_points(self) -> list[Point]:
        """Returns the points that are known beforehand: all of a grid, the starts of a search."""
        starts = [self.ask(FixedTrial(self.lowest | start)) for start in self.starts()]
        return [*self.points, *(p for assignment in starts for p in self.points_of(assignment))]

    def starts(self) -> Iterator[dict[str, Any]]:
        """Yields Optuna's parameters of the settings that a search tries first."""
        space = self.recipe.space
        for assignment in self.recipe.assignments if space else ():
            params: dict[str, Any] = {}
            for key, value in assignment.items():
                params |= space[key].params(key, value)
            yield params

    def _has(self, key: str, assignment: Mapping[str, Any]) -> bool:
        from dtr_lightning.config.parser import takes

        axis, _, option = key.partition(".")
        choice = assignment.get(axis, (self.config.get(axis) or {}))
        if isinstance(choice, Mapping):
            choice = choice.get("class_path")
        return not option or choice is None or takes(axis, choice, option)


def _points(
    recipe: Recipe, assignment: Mapping[str, Any], digests: dict[str, str]
) -> Iterator[Point]:
    from dtr_lightning.config.parser import resolve, run_name

    # a smoke run is short for those points too whose own entry says otherwise
    assignment = {key: recipe.overrides.get(key, own) for key, own in assignment.items()}
    config = resolve(recipe.config, recipe.overrides | assignment)
    for seed in range(recipe.seeds):
        seeded = config | {"seed": seed}
        name = run_name(seeded, recipe.config, recipe.overrides, assignment, digests)
        yield Point(name, assignment | {"seed": seed}, seeded)


def resolve_all(recipe: Recipe) -> Sweep:
    """Resolves every point against the base config; UserError for an option that is not valid.

    Two assignments that mean the same config are one point. Points of a lower seed come first.
    """
    # The models behind a config take seconds to import: a caller starts other things before.
    from dtr_lightning.config.parser import resolve

    base = resolve(recipe.config, recipe.overrides)
    if recipe.kind != "grid":
        sweep = Sweep(recipe, base, ())
        _try(sweep)
        return sweep
    points: dict[str, Point] = {}
    digests: dict[str, str] = {}
    for assignment in recipe.assignments:
        for point in _points(recipe, assignment, digests):
            points.setdefault(point.name, point)
    ordered = sorted(points.values(), key=lambda point: point.seed)
    return Sweep(recipe, base, tuple(ordered), digests)


def _try(sweep: Sweep) -> None:
    """Raises UserError for a start that is not valid, and for an option that is in no setting.

    A space may hold settings that are not valid together: those are told when they are proposed.
    """
    space = sweep.recipe.space
    first = sweep.lowest
    sweep.known_points()
    wrong: dict[str, UserError] = {}
    sound: set[str] = set()
    for key, axis in space.items():
        for value in axis.examples:
            choice = f"{key}={value}" if isinstance(axis, Choices) else key
            wrong.setdefault(choice, UserError(f"no setting of the space has {key}"))
            try:
                assignment = sweep.ask(FixedTrial(first | axis.params(key, value)))
                sweep.points_of(assignment)
            except UserError as error:
                wrong[choice] = error
            else:
                sound |= {*assignment, *(f"{k}={v}" for k, v in assignment.items())}
    for choice, error in wrong.items():
        if choice not in sound:
            raise error
