"""The points of a sweep: assignments of options, their resolved configs and their run names."""

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
        """Its short name, for instance `DTR alpha=4 beta=0.8 seed=0`."""
        return _label(self.params)

    @property
    def setting_label(self) -> str:
        """Its short name without the seed, by which a sweep gives published numbers."""
        return _label(self.assignment)

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
        """Its options without the seed, as JSON."""
        return json.dumps(self.assignment, sort_keys=True)


def _label(options: Mapping[str, Any]) -> str:
    short = {key.rsplit(".", 1)[-1]: value for key, value in options.items()}
    first = short.pop("router", None)
    rest = [f"{key}={value}" for key, value in short.items()]
    return " ".join([str(first), *rest] if first else rest)


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
        """The first metric."""
        return self.recipe.metric

    @property
    def total(self) -> int | None:
        """The number of trainings; None for a search for some hours."""
        if self.recipe.kind == "grid":
            return len(self.points)
        return self.recipe.trials and self.recipe.trials * self.recipe.seeds

    @property
    def devices(self) -> int:
        """The largest number of devices that a point uses."""
        configs = [point.config for point in self.points if point.config is not None]
        counts = [config["trainer"].get("devices") for config in configs or [self.config]]
        return max(count if isinstance(count, int) and count > 0 else 1 for count in counts)

    def points_of(self, assignment: Mapping[str, Any]) -> list[Point]:
        """Returns the point of every seed; UserError for an option that is not valid."""
        return list(_points(self.recipe, assignment, self.digests))

    def ask(self, trial: BaseTrial) -> dict[str, Any]:
        """Returns the assignment that a trial of a search proposes.

        Options that the chosen router, or another choice, does not have are left out.
        """
        assignment: dict[str, Any] = {}
        # a choice comes before its own options
        for key, axis in sorted(self.recipe.space.items(), key=lambda item: "." in item[0]):
            if self._has(key, assignment):
                assignment[key] = axis.suggest(trial, key)
        return assignment

    @property
    def lowest(self) -> dict[str, Any]:
        """Optuna's parameters of the lowest setting of a search's space."""
        params: dict[str, Any] = {}
        for key, axis in self.recipe.space.items():
            params |= axis.params(key, axis.examples[0])
        return params

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

    # a smoke run is also short for points that set their number of steps
    assignment = {key: recipe.overrides.get(key, value) for key, value in assignment.items()}
    config = resolve(recipe.config, recipe.overrides | assignment)
    for seed in range(recipe.seeds):
        seeded = config | {"seed": seed}
        name = run_name(seeded, recipe.config, recipe.overrides, assignment, digests)
        yield Point(name, assignment | {"seed": seed}, seeded)


def resolve_all(recipe: Recipe) -> Sweep:
    """Resolves every point against the base config; UserError for an option that is not valid.

    Two assignments that mean the same config are one point. Points of a lower seed come first.
    """
    # takes seconds to import: a caller starts its workers before
    from dtr_lightning.config.parser import resolve

    base = resolve(recipe.config, recipe.overrides)
    if recipe.kind != "grid":
        sweep = Sweep(recipe, base, ())
        _check_space(sweep)
        return sweep
    points: dict[str, Point] = {}
    digests: dict[str, str] = {}
    for assignment in recipe.assignments:
        for point in _points(recipe, assignment, digests):
            points.setdefault(point.name, point)
    ordered = sorted(points.values(), key=lambda point: point.seed)
    if recipe.published and not recipe.smoke:
        recipe.published.check(point.setting_label for point in ordered)
    return Sweep(recipe, base, tuple(ordered), digests)


def _check_space(sweep: Sweep) -> None:
    """Raises UserError for a start that is not valid, and for a value that is in no valid setting.

    A space may hold settings that are not valid: those fail when they are proposed.
    """
    space = sweep.recipe.space
    sweep.known_points()
    errors: dict[str, UserError] = {}
    valid: set[str] = set()
    for key, axis in space.items():
        for value in axis.examples:
            choice = f"{key}={value}" if isinstance(axis, Choices) else key
            errors.setdefault(choice, UserError(f"no setting of the space has {key}"))
            try:
                assignment = sweep.ask(FixedTrial(sweep.lowest | axis.params(key, value)))
                sweep.points_of(assignment)
            except UserError as error:
                errors[choice] = error
            else:
                valid |= {*assignment, *(f"{k}={v}" for k, v in assignment.items())}
    for choice, error in errors.items():
        if choice not in valid:
            raise error
