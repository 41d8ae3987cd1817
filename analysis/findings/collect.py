"""The runs of sweeps become archives: of all sweeps that are named, or of none."""

__all__ = ["Registered", "collect", "names", "whole"]

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from analysis.findings.archive import pack
from analysis.read.runs import Finished, read
from dtr_lightning.config.parser import resolve
from dtr_lightning.errors import UserError, choices
from dtr_lightning.rundir.naming import settings
from dtr_lightning.rundir.run import find_runs
from dtr_lightning.rundir.yaml_values import LOADER

RECIPES = Path(__file__).resolve().parent.parent.parent / "sweeps" / "findings"
APART = ("seed", "data.root")  # a setting has several seeds; images may lie anywhere


def names() -> list[str]:
    """Returns the names of the registered sweeps."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def collect(
    directories: Sequence[Path],
    folder: Path,
    cka: Callable[[str, Sequence[Finished]], Mapping[Path, Mapping[str, Any]]],
) -> list[tuple[Path, int]]:
    """Archives the sweeps in these directories; returns each archive's path and number of runs.

    cka takes a sweep's name and runs, and returns {run's path: arrays} for those whose CKA is kept.
    UserError, before anything is written, if one is not a registered sweep, whole.
    """
    sweeps: dict[str, list[Finished]] = {}
    for directory in directories:
        name, runs = whole(directory)
        if name in sweeps:
            raise UserError(f"{directory} is findings/{name}, as another of these directories")
        sweeps[name] = runs
    measured = {name: cka(name, runs) for name, runs in sweeps.items()}
    return [(pack(name, runs, folder, measured[name]), len(runs)) for name, runs in sweeps.items()]


def whole(directory: Path) -> tuple[str, list[Finished]]:
    """Returns the name of the registered sweep in a directory, and its runs.

    UserError if it is another sweep, has a run of other settings or a smoke run, or is not
    finished.
    """
    try:
        stored = yaml.load((directory / "sweep.yaml").read_text(), Loader=LOADER)
        full = str(stored["name"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{directory} is not the directory of a sweep") from error
    name = full.removeprefix("findings/")
    if name == full or name not in names():
        raise choices("sweep of the findings", full, [f"findings/{each}" for each in names()])
    reading = read(find_runs([directory]))
    if smoke := [run for run in reading.finished if run.smoke]:
        raise UserError(f"{smoke[0].path} is a smoke run: its numbers mean nothing")
    goes_on = f"`python sweep.py {full} --out {directory}` goes on"
    if left := reading.skipped + [f"{run.path.name} was pruned" for run in reading.pruned]:
        raise UserError(f"{directory}: {'; '.join(left)}; {goes_on}")
    registered = Registered.of(name)
    done = registered.count(reading.finished)
    if done < registered.runs:
        raise UserError(f"{directory} has {done} of {registered.runs} runs; {goes_on}")
    return name, reading.finished


@dataclass(frozen=True)
class Registered:
    """What a sweep in sweeps/findings trains: settings, each with seeds 0 .. seeds - 1.

    Of a search, settings are those that it starts with, `trials` is how many it tries in all, and
    `searched` are the options of its space.
    """

    file: Path
    settings: list[dict[str, Any]]
    seeds: int
    trials: int | None
    searched: frozenset[str]

    @classmethod
    def of(cls, name: str) -> "Registered":
        """Reads a sweep by its name."""
        file = RECIPES / f"{name}.yaml"
        recipe = yaml.load(file.read_text(), Loader=LOADER)
        config, space = file.parent / recipe["config"], recipe.get("space", {})
        first = {key: values[0] for key, values in space.items() if isinstance(values, list)}
        flat = [
            settings(resolve(config, first | entry))
            for entry in (recipe["start"] if space else _combined(recipe["grid"]))
        ]
        rest = [{k: v for k, v in each.items() if k not in APART} for each in flat]
        return cls(file, rest, recipe["seeds"], recipe.get("trials"), frozenset(space))

    @property
    def runs(self) -> int:
        """The number of runs."""
        return (self.trials or len(self.settings)) * self.seeds

    def count(self, runs: Sequence[Finished]) -> int:
        """Returns how many of the registered runs are there; UserError for a run that is none."""
        for run in runs:
            if run.seed >= self.seeds:
                raise UserError(f"{run.path}: seed {run.seed} is none of {self.file}")
        return len({(self._setting(run), run.seed, run.hash_without("seed")) for run in runs})

    def _setting(self, run: Finished) -> int:
        """Returns which setting a run has, or the start of its search."""
        differing = [
            [
                key
                for key, value in each.items()
                if key not in self.searched and run.flat.get(key, value) != value
            ]
            for each in self.settings
        ]
        nearest = min(range(len(differing)), key=lambda i: len(differing[i]))
        if differing[nearest]:
            key = differing[nearest][0]
            theirs = self.settings[nearest][key]
            raise UserError(f"{run.path}: {key} is {run.flat[key]!r}, in {self.file} {theirs!r}")
        return nearest


def _combined(grid: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the combinations of each entry's values."""
    for entry in grid:
        values = [value if isinstance(value, list) else [value] for value in entry.values()]
        for each in itertools.product(*values):
            yield dict(zip(entry, each, strict=True))
