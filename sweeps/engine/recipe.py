"""A sweep's YAML, read and checked for its own form; form.py has its keys."""

__all__ = ["SMOKE", "Recipe", "find", "folders", "members", "names", "read"]

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from dtr_lightning.errors import UserError, choices
from dtr_lightning.rundir.yaml_values import LOADER
from sweeps.engine.form import Direction, Form, GridForm, SearchForm, read_form
from sweeps.engine.published import Published, read_published
from sweeps.engine.space import Axis, axes, starts
from sweeps.engine.values import check_options, expand, one_line, option

SHIPPED = Path(__file__).parent.parent
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
    objectives: dict[str, Direction]  # a number of results.json: minimize | maximize
    seeds: int
    overrides: dict[str, Any]
    assignments: list[dict[str, Any]]  # the points of a grid, the first ones of a search
    space: dict[str, Axis] = field(default_factory=dict)
    trials: int | None = None
    hours: float | None = None
    sampler: dict[str, Any] = field(default_factory=dict)
    pruning: dict[str, Any] | None = None
    steps_per_second: float | None = None
    gpus: int = 1  # of one training
    source: str | None = None  # of steps_per_second
    images: dict[str, int] | None = None
    published: Published | None = None
    also: tuple[str, ...] = ()
    smoke: bool = False  # its runs say that their numbers mean nothing

    @property
    def metric(self) -> str:
        """The first objective."""
        return next(iter(self.objectives))

    @property
    def direction(self) -> str:
        """Whether a lower or a higher first objective is better."""
        return self.objectives[self.metric]


def names(folder: str = "") -> list[str]:
    """Returns the names of the sweeps that ship with the suite, or of those in a folder of them."""
    return sorted(f"{folder}/{path.stem}".strip("/") for path in (SHIPPED / folder).glob("*.yaml"))


def folders() -> dict[str, list[str]]:
    """Returns the folders of shipped sweeps, each with the names of all sweeps below it."""
    below: dict[str, list[str]] = {}
    for path in sorted(SHIPPED.glob("*/**/*.yaml")):
        name = path.relative_to(SHIPPED).with_suffix("")
        for folder in name.parents[:-1]:
            below.setdefault(folder.as_posix(), []).append(name.as_posix())
    return dict(sorted(below.items()))


def members(sweep: str) -> list[str]:
    """Returns the sweeps that a name stands for: all below a folder, else itself."""
    return folders().get(str(sweep).rstrip("/"), [sweep])


def _shipped() -> list[str]:
    """Returns what ships, the sweeps of a folder together, for a person who looks for one."""
    grouped = []
    for folder in folders():
        if own := [name.rpartition("/")[2] for name in names(folder)]:
            grouped.append(f"{folder}/ ({', '.join(own)})")
    return [*names(), *grouped]


def find(sweep: str | Path) -> Path:
    """Returns the YAML of a shipped name or a path; UserError with the valid names otherwise."""
    path, shipped = Path(sweep), ", ".join(_shipped())
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise UserError(f"sweep {path} is not a file; shipped sweeps: {shipped}")
    if below := folders().get(str(sweep)):
        raise UserError(f"{sweep} is a folder of sweeps; name one of them: {', '.join(below)}")
    if str(sweep) not in [*names(), *itertools.chain(*folders().values())]:
        raise choices("sweep", str(sweep), [shipped, "or the path of a .yaml file"])
    return SHIPPED / f"{sweep}.yaml"


def _name(path: Path) -> str:
    """Returns the name of a sweep: of a shipped one its path below sweeps/."""
    full = path.resolve()
    inside = full.is_relative_to(SHIPPED.resolve())
    return full.relative_to(SHIPPED.resolve()).with_suffix("").as_posix() if inside else path.stem


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
        content, name, folder, where = _load(path), _name(path), path.parent, str(path)
    if paper:
        if not isinstance(content.get("paper"), Mapping):
            raise UserError(f"{where} has no key `paper`: it has one size only")
        content = content | content["paper"]
    replaced = {"trials": trials, "hours": hours} if (trials, hours) != (None, None) else {}
    if replaced and content.get("kind", "grid") == "grid":
        raise UserError(f"--trials and --hours are for a search; {where} is a grid")
    form = read_form(content | replaced | ({} if seeds is None else {"seeds": seeds}), where)
    objectives = form.objectives(where)
    if isinstance(form, SearchForm):
        space = axes(form.space, where)
        assignments = starts(form.start or [], space, where)
        _check_search(form, space, objectives, where)
        search: dict[str, Any] = {"space": space, "sampler": form.sampler or {}}
        search |= {"trials": form.trials, "hours": form.hours}
        if smoke and not replaced:
            search |= {"trials": max(SMOKE_TRIALS, len(assignments)), "hours": None}
    else:
        assignments, search = expand(form.grid, where), {}
    if form.pruning and len(objectives) > 1:
        raise UserError(f"{where}: pruning works with one metric only; leave one of the two out")
    set_options = dict(map(option, options))
    swept = {*search.get("space", ()), *itertools.chain(*assignments)}
    if twice := [key for key in set_options if key in swept]:
        raise UserError(f"--set {twice[0]}: {where} sets it already; change it there")
    overrides = check_options(SMOKE if form.smoke is None else form.smoke, f"{where}: smoke")
    return Recipe(
        name=name,
        config=folder / form.config,
        kind=form.kind,
        objectives=objectives,
        seeds=form.seeds,
        overrides=(overrides if smoke else {}) | set_options,
        assignments=assignments,
        pruning={"kind": form.pruning} if isinstance(form.pruning, str) else form.pruning,
        smoke=smoke,
        **_stated(form, where),
        **search,
    )


def _stated(form: Form, where: str) -> dict[str, Any]:
    """Returns what a sweep says of its cost and of what was published."""
    for name in form.also or ():
        if name not in folders():
            find(name)
    if form.images and not form.steps_per_second:
        raise UserError(f"{where}: images need steps_per_second too, to count GPU-hours by")
    return {
        "steps_per_second": form.steps_per_second,
        "gpus": form.gpus,
        "source": form.source,
        "images": form.images,
        "published": read_published(form.published, where),
        "also": tuple(form.also or ()),
    }


def _check_search(
    form: SearchForm, space: Mapping[str, Axis], objectives: Mapping[str, str], where: str
) -> None:
    if (form.trials is None) == (form.hours is None):
        raise UserError(f"{where}: a search needs either trials or hours")
    words = [key for key, axis in space.items() if not axis.is_numeric]
    if form.kind == "cmaes" and words:
        raise UserError(f"{where}: cmaes searches numbers, not the choices of {words[0]}; use tpe")
    if form.kind != "random" and (form.kind == "nsga2") != (len(objectives) > 1):
        raise UserError(
            f"{where}: nsga2 takes several metrics, as in {{score: minimize, macs: minimize}}; "
            "tpe and cmaes take one, random takes either"
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
        keys = [key.name for key in fields(GridForm)]
        raise UserError(f"{path} holds no mapping; valid keys: {', '.join(keys)}")
    return content
