"""What the sweeps of the findings train, as their files in sweeps/findings say."""

__all__ = ["Registered", "names"]

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from analysis.read.runs import Finished
from dtr_lightning.config.parser import resolve
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.naming import settings
from dtr_lightning.rundir.yaml_values import LOADER

RECIPES = Path(__file__).resolve().parent.parent.parent / "sweeps" / "findings"
APART = ("seed", "data.root")  # a setting has several seeds; images may lie anywhere


def names() -> list[str]:
    """Returns the names of the registered sweeps."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


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
        """Returns how many of the registered runs are there.

        UserError for a run that is none of them, a smoke run, or one that lacks a file.
        """
        for run in runs:
            if run.smoke:
                raise UserError(f"{run.path} is a smoke run: its numbers mean nothing")
            if run.seed >= self.seeds:
                raise UserError(f"{run.path}: seed {run.seed} is none of {self.file}")
            for file in (run.meta_file, run.metrics_file):
                if not file.is_file():
                    raise UserError(f"{run.path} has no {file.name}")
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
