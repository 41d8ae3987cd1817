"""The plan of a sweep: a YAML of a base config and a grid becomes points, each a resolved config.

config: ../configs/digits.yaml      the base, relative to this file
grid:                               each entry is the product of its lists;
  - {router: NoRouting}             keys are the dotted options of train.py
  - {router: DTR, router.alpha: [1, 4], router.beta: [0.6, 0.8]}
  - {router: FreeWindow, router.knots: [[0, 1], [0, 0.2, 1]]}     values that are lists
seeds: 1                            every point is trained with the seeds 0 .. seeds - 1
metric: score                       a number of results.json
direction: minimize
smoke: {trainer.max_steps: 10}      options of --smoke, on top of the base; SMOKE by default
paper: {config: .., grid: [..]}     what --paper trains instead: the published sizes
"""

__all__ = ["Point", "Recipe", "Sweep", "find", "names", "read", "resolve_all"]

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dtr_lightning.errors import UserError, choices

SHIPPED = Path(__file__).parent
KEYS = ("config", "grid", "seeds", "metric", "direction", "smoke", "paper")
DIRECTIONS = ("minimize", "maximize")
SMOKE = {
    "trainer.max_steps": 30,
    "trainer.log_every_n_steps": 10,
    "checkpoint.every": 15,
    "sampler.steps": 5,
    "evaluation.n": 128,
    "evaluation.every": 15,
    "evaluation.every_n": 64,
}


class Point(NamedTuple):
    """One training of the plan; its name, unique in a sweep, is that of its run directory."""

    name: str
    params: dict[str, Any]
    config: dict[str, Any]

    @property
    def label(self) -> str:
        """What a person calls it, for instance `DTR alpha=4 beta=0.8 seed=0`."""
        params = {key.rsplit(".", 1)[-1]: value for key, value in self.params.items()}
        first = params.pop("router", None)
        rest = [f"{key}={value}" for key, value in params.items()]
        return " ".join([str(first), *rest] if first else rest)


@dataclass(frozen=True)
class Recipe:
    """A sweep's YAML, checked for its own form; the options in it are not resolved yet."""

    name: str
    config: Path
    overrides: dict[str, Any]
    assignments: list[dict[str, Any]]
    metric: str
    direction: str


@dataclass(frozen=True)
class Sweep:
    """A plan: the resolved base config, what is measured and the points in their order."""

    name: str
    config: dict[str, Any]
    metric: str
    direction: str
    points: tuple[Point, ...]


def names() -> list[str]:
    """Returns the names of the sweeps that ship with the suite."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def find(sweep: str | Path) -> Path:
    """Returns the YAML of a shipped name or a path; UserError with the valid names otherwise."""
    path = Path(sweep)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise UserError(f"sweep {path} is not a file; shipped sweeps: {', '.join(names())}")
    if str(sweep) not in names():
        raise choices("sweep", str(sweep), [*names(), "or the path of a .yaml file"])
    return SHIPPED / f"{sweep}.yaml"


def read(
    sweep: str | Path,
    *,
    seeds: int | None = None,
    smoke: bool = False,
    paper: bool = False,
    options: Sequence[str] = (),
) -> Recipe:
    """Reads a sweep without importing what it trains; UserError for a YAML of another form.

    options are `key=value`, for every point.
    """
    path = find(sweep)
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no mapping; valid keys: {', '.join(KEYS)}")
    for key in content:
        if key not in KEYS:
            raise choices(f"key in {path}", key, KEYS)
    if paper:
        if not isinstance(content.get("paper"), dict):
            raise UserError(f"{path} has no key `paper`: it knows no other size than its own")
        content |= content["paper"]
    if not isinstance(content.get("config"), str):
        raise UserError(f"{path}: config is to be the path of the base config")
    direction = content.get("direction", "minimize")
    if direction not in DIRECTIONS:
        raise choices(f"direction in {path}", direction, DIRECTIONS)
    metric = content.get("metric", "score")
    if not isinstance(metric, str):
        raise UserError(f"{path}: metric is to be the name of a number in results.json")
    number = content.get("seeds", 1) if seeds is None else seeds
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise UserError(f"seeds is to be a whole number from 1, not {number!r}")
    own = dict(map(_option, options))
    for key in own:
        if any(key in entry for entry in content.get("grid") or [] if isinstance(entry, Mapping)):
            raise UserError(f"--set {key}: the grid of {path} sets it already; change it there")
    overrides = content.get("smoke", SMOKE) or {}
    _check_options(overrides, f"{path}: smoke")
    return Recipe(
        name=path.stem,
        config=path.parent / content["config"],
        overrides=(dict(overrides) if smoke else {}) | own,
        assignments=[
            {**assignment, "seed": seed}
            for seed in range(number)
            for assignment in _expand(content.get("grid"), path)
        ],
        metric=metric,
        direction=direction,
    )


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UserError(f"--set takes OPTION=VALUE, such as data.root=images; got {text!r}")
    if key == "seed":
        raise UserError("--set seed=... is not valid; use --seeds N")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text}: {' '.join(str(error).split())}") from error


def _check_options(options: Any, where: str) -> None:
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise UserError(f"{where} is to map dotted options to values")


def _expand(grid: Any, path: Path) -> list[dict[str, Any]]:
    """Returns one assignment of options per point: the products of all entries, in order."""
    if not isinstance(grid, list) or not grid:
        raise UserError(f"{path}: grid is to be a list of entries such as {{router: NoRouting}}")
    assignments = []
    for number, entry in enumerate(grid, 1):
        _check_options(entry, f"{path}: entry {number} of grid")
        if "seed" in entry:
            raise UserError(f"{path}: entry {number} of grid sets seed; use seeds instead")
        axes = [
            [json.dumps(x) if isinstance(x, list) else x for x in value]
            if isinstance(value, list)
            else [value]
            for value in entry.values()
        ]
        for key, axis in zip(entry, axes, strict=True):
            for value in axis or [None]:
                if not isinstance(value, str | int | float):
                    raise UserError(
                        f"{path}: {key} in entry {number} of grid is to be a number, a word or "
                        f"a list of these, not {value!r}; an option that is a list itself, such as "
                        "router.knots, is a list in that list: [[0, 1]]"
                    )
        assignments += [
            dict(zip(entry, values, strict=True)) for values in itertools.product(*axes)
        ]
    return assignments


def resolve_all(recipe: Recipe) -> Sweep:
    """Resolves every point against the base config; UserError for an option that is not valid.

    Two assignments that mean the same config are one point.
    """
    # The models behind a config take seconds to import: a caller starts other things before.
    from dtr_lightning.config import resolve, run_name

    base = resolve(recipe.config, recipe.overrides)
    points: dict[str, Point] = {}
    for assignment in recipe.assignments:
        # a smoke run is short for those points too whose own entry says otherwise
        assignment = {key: recipe.overrides.get(key, own) for key, own in assignment.items()}
        config = resolve(recipe.config, recipe.overrides | assignment)
        name = run_name(config, recipe.config, recipe.overrides)
        point = Point(name, assignment, config)
        points.setdefault(point.name, point)
    return Sweep(recipe.name, base, recipe.metric, recipe.direction, tuple(points.values()))
