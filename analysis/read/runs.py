"""What the figures and tables read of run directories: finished and pruned runs.

What a figure computes with is checked when a run is read, once: figures need not.
"""

__all__ = ["Finished", "Group", "Pruned", "Reading", "Recorded", "groups", "mixed", "named", "read"]

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from analysis.read.kinds import CONFIG, META, NEEDED, RESULTS, checked, checked_record
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.naming import flatten, settings
from dtr_lightning.rundir.run import Run


class Recorded(Run):
    """A run whose config and meta are read once and checked; UserError if one is damaged."""

    config = cached_property(Run.config.fget)
    meta = cached_property(Run.meta.fget)

    def __init__(self, run: Run) -> None:
        super().__init__(run.path)
        config = self.config
        try:
            # of a run that was stored without digests the folder of the images tells them apart
            root = {"data.root": self.root} if self.root else {}
            self.flat = settings(config, root | self.contents)
            json.dumps(self.flat, sort_keys=True)
        except (TypeError, ValueError, RecursionError) as error:  # a date, a number as a key
            raise UserError(f"{self.config_file} is damaged: {error}") from error
        checked(self.config_file, self.flat, CONFIG)
        checked(self.meta_file, self.meta, META)

    @property
    def root(self) -> str:
        """Where the images lay when the run was last computed; empty for data without a folder."""
        return str(flatten(self.config).get("data.root") or "")

    def choice(self, axis: str) -> str:
        """Returns the class name chosen for an axis such as router, without its module."""
        return str(self.flat.get(axis, "")).rsplit(".", 1)[-1]

    def option(self, key: str) -> float:
        """Returns a number of the config; nan if it is absent or null."""
        value = self.flat.get(key)
        return math.nan if value is None else float(value)

    def hash_without(self, *axes: str) -> str:
        """Returns a hash of what the run computes but for some top-level keys of its config."""
        own = {*axes}
        kept = {k: v for k, v in self.flat.items() if own.isdisjoint((k, k.split(".", 1)[0]))}
        return sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[
            :16
        ]  # six are too few for 5,000

    @property
    def smoke(self) -> bool:
        """Whether it is of a smoke run, whose numbers mean nothing."""
        return bool(self.meta.get("smoke"))

    @property
    def seed(self) -> int:
        """The seed of weights, data order, t and noise."""
        return self.flat.get("seed", 0)


class Pruned(Recorded):
    """A run that its sweep ended early: meta.json has the step and its score; no results."""


class Finished(Recorded):
    """A done run, its files read once and checked; UserError if one of them is damaged."""

    results = cached_property(Run.results.fget)

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        if missing := NEEDED - (self.results or {}).keys():
            raise UserError(f"{self.results_file} has no {', '.join(sorted(missing))}")
        checked(self.results_file, self.results, RESULTS)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl: numbers, or null where they are not finite."""
        return [checked_record(self.metrics_file, record) for record in self.metrics()]

    def number(self, key: str) -> float:
        """Returns a number of results.json; nan if it is absent, null or not finite."""
        value = self.results.get(key)
        return math.nan if value is None or not math.isfinite(value) else float(value)

    @property
    def smoke(self) -> bool:
        """Whether it is of a smoke run, whose numbers mean nothing."""
        return bool(self.results.get("smoke")) or super().smoke

    @property
    def score(self) -> float:
        """The final score, lower is better; nan if the run diverged."""
        return self.number("score")

    @property
    def protocol(self) -> tuple[str, int]:
        """Name of the score and number of samples: other scores must not be compared with it."""
        return self.results["score_name"], self.results["n"]


@dataclass(frozen=True)
class Reading:
    """Finished runs and a line per reason why others are left out, as which it unpacks; pruned."""

    finished: list[Finished]
    skipped: list[str]
    pruned: list[Pruned]

    def __iter__(self) -> Iterator[list]:
        return iter((self.finished, self.skipped))


def read(runs: Iterable[Run], records: bool = True) -> Reading:
    """Reads all finished and pruned runs; the unfinished are counted, the damaged are named.

    Without `records` metrics.jsonl is not read: tables do without.
    """
    finished, pruned, skipped, status = {}, [], [], Counter()
    for run in runs:
        try:
            if isinstance(run, Finished) or run.results_file.is_file():
                run = run if isinstance(run, Finished) else Finished(run)
                if records:
                    _ = run.records  # a damaged file is told here, not by a figure
                finished.setdefault((run.hash_without("seed"), run.seed), []).append(run)
                continue
            state = checked(run.meta_file, run.meta, META).get("status") or "not started"
            if state == "pruned":
                pruned.append(run if isinstance(run, Pruned) else Pruned(run))
            else:
                status["without its results.json" if state == "done" else state] += 1
        except UserError as error:
            skipped.append(f"skipped: {' '.join(str(error).split())}")
    if copies := sum(map(len, finished.values())) - len(finished):
        skipped.append(f"skipped: {copies} copies of runs that are there already")
    if status:
        detail = ", ".join(f"{count} {name}" for name, count in sorted(status.items()))
        skipped.append(f"skipped: {status.total()} unfinished ({detail})")
    return Reading([same[0] for same in finished.values()], skipped, pruned)


@dataclass(frozen=True)
class Group:
    """Runs whose scores may be compared: equal in data and scoring, all of a smoke or none."""

    label: str
    data: str
    runs: list[Recorded]

    @property
    def finished(self) -> list[Finished]:
        """Its runs that have results."""
        return [run for run in self.runs if isinstance(run, Finished)]


def groups(runs: Iterable[Recorded]) -> list[Group]:
    """Parts runs into groups, smoke runs last, else that of the most finished runs first."""
    found, protocols = defaultdict(list), {}
    for run in sorted(runs, key=lambda run: not isinstance(run, Finished)):
        key = run.smoke, json.dumps(_compared(run), sort_keys=True)
        # a pruned run has no score: it belongs to those that are scored as it would have been
        protocol = run.protocol if isinstance(run, Finished) else protocols.get(key)
        protocols.setdefault(key, protocol)
        found[protocol, *key].append(run)
    parted, seen = [], Counter()
    for own in found.values():
        label = _label(own[0], [others[0] for others in found.values()])
        seen[label] += 1
        label += f" ({seen[label]})" * (seen[label] > 1)
        parted.append(Group(label, _data_name(own[0]), own))
    return sorted(parted, key=lambda group: (group.runs[0].smoke, -len(group.finished)))


def _label(run: Recorded, others: Sequence[Recorded]) -> str:
    """Returns a run's data and score, and the options that tell it from others of that data."""

    def short(run: Recorded) -> list[str]:
        score = [run.protocol[0], f"N = {run.protocol[1]:,}"] if isinstance(run, Finished) else []
        return [_data_name(run), *score, "smoke" * run.smoke]

    alike = [_compared(other) for other in others if short(other) == short(run)]
    differing = [
        f"{key.rsplit('.', 1)[-1]}={Path(value).name if isinstance(value, str) else value}"
        for key, value in _compared(run).items()
        if key != "data.root" and any(other.get(key) != value for other in alike)
    ]
    return ", ".join(filter(None, [*short(run), *differing]))


def _data_name(run: Recorded) -> str:
    """Returns the class of a run's data, and the name of their folder if they are in one."""
    return " ".join(filter(None, [run.choice("data"), Path(run.root).name]))


def _compared(run: Recorded) -> dict[str, Any]:
    """Returns the options that say on which images a run is trained, and how it is scored."""
    axes = ("data", "sampler", "features", "evaluation")
    other = ("data.batch_size", "data.flip", "evaluation.every", "evaluation.every_n")
    own = {k: v for k, v in run.flat.items() if k.split(".")[0] in axes}
    own = {"evaluation.labels": "balanced"} | own  # as it was before it was an option
    return {k: v for k, v in own.items() if k not in other}


def mixed(found: Sequence[Group]) -> str:
    """Says which runs are not compared with one another; empty if all are."""
    if len(found) < 2:
        return ""
    told = [f"{group.label}: {named(group.runs)}" for group in found]
    return (
        f"not compared with one another: {'; '.join(told)}. Each has a table of its own, and a "
        "figure is of the first that it can be drawn of"
    )


def relative_paths(runs: Sequence[Run]) -> dict[Path, str]:
    """Returns what tables call each run: its path from the directory that all have in common."""
    if not runs:
        return {}
    root = os.path.commonpath([run.path.parent for run in runs])
    return {run.path: run.path.relative_to(root).as_posix() for run in runs}


def named(runs: Sequence[Recorded]) -> str:
    """Returns the first one's name, and how many others there are."""
    more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    return f"{runs[0].path.name}{more}"
