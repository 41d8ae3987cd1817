"""A sweep's YAML, read and checked for its own form.

config: ../configs/digits.yaml      the base, relative to this file
kind: grid                          grid | tpe | cmaes | nsga2 | random
grid:                               each entry is the product of its lists;
  - {router: NoRouting}             keys are the dotted options of train.py
  - {router: DTR, router.alpha: [1, 4], router.beta: [0.6, 0.8]}
  - {router: FreeWindow, router.knots: [[0, 1], [0, 0.2, 1]]}     values that are lists
seeds: 1                            train every point with the seeds 0 .. seeds - 1
metric: score                       a number of results.json, or several, each with its own
direction: minimize                 direction: {score: minimize, macs: minimize}
pruning: median                     median | halving | hyperband, with options as {kind: median, ..}
smoke: {trainer.max_steps: 10}      options of --smoke, on top of the base; SMOKE by default
paper: {config: .., grid: [..]}     what --paper trains instead: the published sizes
steps_per_second: 3.1               of the machine it is meant for: --dry-run then counts GPU-hours

A search (every other kind) has these keys instead of grid:

space:                              choices, ranges, or numbers in rising order
  router: [NoRouting, DTR]
  router.alpha: {low: 0.5, high: 8, log: true}       only where the router has an alpha
  router.knots: {rising: 3}                          0, three numbers, 1
start: [{router: DTR, router.alpha: 4}]              tried first; CMA-ES begins at the first one
trials: 40                          settings; or `hours: 8`, of training, all workers together
sampler: {n_startup_trials: 10}     options of Optuna's sampler
"""

__all__ = ["KINDS", "SMOKE", "Recipe", "find", "names", "read"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dtr_lightning.errors import UserError, choices
from dtr_lightning.rundir.yaml_values import LOADER
from sweeps.engine import fields
from sweeps.engine.fields import is_word, named, one_line
from sweeps.engine.space import Axis, axes, starts

SHIPPED = Path(__file__).parent.parent
KINDS = ("grid", "tpe", "cmaes", "nsga2", "random")
COMMON = "config kind seeds metric direction pruning smoke paper steps_per_second".split()
GRID_KEYS = ["grid"]
SEARCH_KEYS = ["space", "start", "trials", "hours", "sampler"]
SMOKE = {
    "trainer.max_steps": 30,
    "trainer.log_every_n_steps": 10,
    "checkpoint.every": 15,
    "sampler.steps": 5,
    "evaluation.n": 128,
    "evaluation.every": 15,
    "evaluation.every_n": 64,
}
SMOKE_TRIALS = 4  # of a search


@dataclass(frozen=True)
class Recipe:
    """A sweep's YAML, checked for its own form; its options are not resolved yet."""

    name: str
    config: Path
    kind: str
    objectives: dict[str, str]  # a number of results.json: minimize | maximize
    seeds: int
    overrides: dict[str, Any]
    assignments: list[dict[str, Any]]  # the points of a grid, the first ones of a search
    space: dict[str, Axis] = field(default_factory=dict)
    trials: int | None = None
    hours: float | None = None
    sampler: dict[str, Any] = field(default_factory=dict)
    pruning: dict[str, Any] | None = None
    steps_per_second: float | None = None
    smoke: bool = False  # its runs say that their numbers mean nothing

    @property
    def metric(self) -> str:
        """The first objective."""
        return next(iter(self.objectives))

    @property
    def direction(self) -> str:
        """Whether a lower or a higher first objective is better."""
        return self.objectives[self.metric]


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
    sweep: str | Path | Mapping[str, Any],
    *,
    seeds: int | None = None,
    smoke: bool = False,
    paper: bool = False,
    trials: int | None = None,
    hours: float | None = None,
    options: Sequence[str] = (),
) -> Recipe:
    """Reads a sweep without importing what it trains; UserError for one of another form.

    A mapping holds what a YAML would, its paths relative to the working directory, and may have a
    `name`. seeds, trials and hours replace those of the sweep; options are `key=value`, for every
    point.
    """
    if isinstance(sweep, Mapping):
        content = dict(sweep)
        name, folder = str(content.pop("name", "sweep")), Path()
        where = f"the sweep {name!r}"
    else:
        path = find(sweep)
        content, name, folder, where = _load(path), path.stem, path.parent, str(path)
    if paper:
        if not isinstance(content.get("paper"), Mapping):
            raise UserError(f"{where} has no key `paper`: it has one size only")
        content = content | content["paper"]
    kind = fields.one_of(content.get("kind", "grid"), KINDS, f"kind in {where}")
    search = kind != "grid"
    for key in content:
        if key not in (valid := [*COMMON, *(SEARCH_KEYS if search else GRID_KEYS)]):
            raise choices(f"key in {where} of kind {kind}", named(key), valid)
    if not is_word(content.get("config")):
        raise UserError(f"{where}: config must be the path of the base config")
    space = axes(content.get("space"), where) if search else {}
    entries = content.get("grid") if isinstance(content.get("grid"), list) else []
    swept = set(space).union(*(entry for entry in entries if isinstance(entry, Mapping)))
    set_options = dict(map(fields.option, options))
    for key in set_options:
        if key in swept:
            raise UserError(f"--set {key}: {where} sets it already; change it there")
    overrides = fields.check_options(content.get("smoke", SMOKE) or {}, f"{where}: smoke")
    overrides = (overrides if smoke else {}) | set_options
    if not search and (trials is not None or hours is not None):
        raise UserError(f"--trials and --hours are for a search; {where} is a grid")
    objectives = fields.objectives(content, where)
    pruning = fields.pruning(content.get("pruning"), where)
    if pruning and len(objectives) > 1:
        raise UserError(f"{where}: pruning works with one metric only; leave one of the two out")
    if kind == "cmaes" and (words := [k for k, axis in space.items() if not axis.is_numeric]):
        raise UserError(f"{where}: cmaes searches numbers, not the choices of {words[0]}; use tpe")
    if (kind == "nsga2") != (len(objectives) > 1) and search and kind != "random":
        raise UserError(
            f"{where}: nsga2 takes several metrics, as in {{score: minimize, macs: minimize}}; "
            "tpe and cmaes take one, random takes either"
        )
    assignments = (
        starts(content.get("start"), space, where)
        if search
        else fields.expand(content.get("grid"), where)
    )
    given = trials is not None or hours is not None
    smallest = max(SMOKE_TRIALS, len(assignments)) if smoke and not given else None
    return Recipe(
        name=name,
        config=folder / content["config"],
        kind=kind,
        objectives=objectives,
        seeds=fields.whole(content.get("seeds", 1) if seeds is None else seeds, "seeds"),
        overrides=overrides,
        assignments=assignments,
        space=space,
        **(fields.budget(content, trials, hours, smallest, where) if search else {}),
        sampler=fields.check_options(content.get("sampler") or {}, f"{where}: sampler"),
        pruning=pruning,
        steps_per_second=fields.positive(
            content.get("steps_per_second"), "steps_per_second", where
        ),
        smoke=smoke,
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(), Loader=LOADER)
    except RecursionError:
        raise UserError(f"{path}: its lists are nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not YAML: {one_line(error)}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no mapping; valid keys: {', '.join([*COMMON, 'grid'])}")
    return content
