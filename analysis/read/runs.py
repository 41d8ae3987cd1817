"""What the figures and tables read of run directories: finished and pruned runs."""

__all__ = ["Finished", "Group", "Pruned", "Reading", "Recorded", "groups", "mixed", "named", "read"]

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from dtr_lightning.errors import UserError
from dtr_lightning.rundir.naming import flatten, settings
from dtr_lightning.rundir.run import Run

NEEDED = {"score", "score_name", "n"}


class Recorded(Run):
    """A run whose files are read once; UserError if one of them is damaged."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.path)
        # runs that were stored without digests differ in the folder of their images
        root = {"data.root": self.root} if self.root else {}
        self.flat = settings(self.config, root | self.contents)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config.yaml."""
        return super().config

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Its meta.json."""
        return super().meta

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

    def has(self, options: Mapping[str, Any]) -> bool:
        """Returns whether its config has these options; a choice is named without its module."""
        return all(
            (self.choice(key) if isinstance(value, str) else self.flat.get(key)) == value
            for key, value in options.items()
        )

    def hash_without(self, *axes: str) -> str:
        """Returns a hash of what the run computes but for some top-level keys of its config."""
        rest = {k: v for k, v in self.flat.items() if {*axes}.isdisjoint((k, k.split(".", 1)[0]))}
        digest = sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
        return digest[:16]  # six are too few for 5,000 runs

    @property
    def smoke(self) -> bool:
        """Whether it is a smoke run, whose numbers mean nothing."""
        return bool(self.meta.get("smoke"))

    @property
    def seed(self) -> int:
        """The seed of weights, data order, t and noise."""
        return self.flat.get("seed", 0)


class Pruned(Recorded):
    """A run that its sweep ended early: meta.json has the step and its score; no results."""


class Finished(Recorded):
    """A done run; UserError if one of its files is damaged."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        if missing := NEEDED - self.results.keys():
            raise UserError(f"{self.results_file} has no {', '.join(sorted(missing))}")

    @cached_property
    def results(self) -> dict[str, Any]:
        """Its results.json."""
        return super().results or {}

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl: numbers, or null where they are not finite."""
        return self.metrics()

    def number(self, key: str) -> float:
        """Returns a number of results.json; nan if it is absent, null or not finite."""
        value = self.results.get(key)
        return math.nan if value is None or not math.isfinite(value) else float(value)

    @property
    def smoke(self) -> bool:
        """Whether it is a smoke run, whose numbers mean nothing."""
        return bool(self.results.get("smoke")) or super().smoke

    @property
    def score(self) -> float:
        """The final score, lower is better; nan if the run diverged."""
        return self.number("score")

    @property
    def has_checkpoint(self) -> bool:
        """Whether its last checkpoint is there, or those of its experts."""
        return self.last.is_file() or any(self.path.glob("experts/*/ckpt/last.ckpt"))

    @property
    def protocol(self) -> tuple[str, int]:
        """Name of the score and number of samples: other scores must not be compared with it."""
        return self.results["score_name"], self.results["n"]


@dataclass(frozen=True)
class Reading:
    """Finished runs, lines on damaged ones and copies, a line on unfinished ones, and pruned runs.

    It unpacks to the finished runs and all lines.
    """

    finished: list[Finished]
    damaged: list[str]
    unfinished: list[str]
    pruned: list[Pruned]

    @property
    def skipped(self) -> list[str]:
        """A line per reason why runs are left out."""
        return [f"skipped: {line}" for line in self.damaged + self.unfinished]

    def __iter__(self) -> Iterator[list]:
        return iter((self.finished, self.skipped))


def read(runs: Iterable[Run], records: bool = True) -> Reading:
    """Reads all finished and pruned runs; the unfinished are counted, the damaged are named.

    Without `records` metrics.jsonl is not read: tables do without.
    """
    finished: dict[tuple[str, int], list[Finished]] = {}
    pruned, damaged, status = [], [], Counter()
    for run in runs:
        try:
            if isinstance(run, Finished) or run.results_file.is_file():
                run = run if isinstance(run, Finished) else Finished(run)
                if records:
                    _ = run.records  # a damaged file is named here, not by each figure
                finished.setdefault((run.hash_without("seed"), run.seed), []).append(run)
                continue
            state = run.meta.get("status") or "not started"
            if state == "pruned":
                pruned.append(run if isinstance(run, Pruned) else Pruned(run))
            else:
                status["without its results.json" if state == "done" else state] += 1
        except UserError as error:
            damaged.append(" ".join(str(error).split()))
    if copies := [run for same in finished.values() for run in same[1:]]:
        damaged.append(f"copies of other runs: {len(copies)}, such as {copies[0].path}")
    detail = ", ".join(f"{count} {name}" for name, count in sorted(status.items()))
    unfinished = [f"{status.total()} unfinished ({detail})"] if status else []
    return Reading([same[0] for same in finished.values()], damaged, unfinished, pruned)


@dataclass(frozen=True)
class Group:
    """Runs whose scores may be compared: equal in data and protocol, all smoke runs or none."""

    label: str
    data: str
    runs: list[Recorded]

    @property
    def finished(self) -> list[Finished]:
        """Its runs that have results."""
        return [run for run in self.runs if isinstance(run, Finished)]


def groups(runs: Iterable[Recorded]) -> list[Group]:
    """Parts runs into groups: the largest first, those of smoke runs last."""
    alike, protocols = defaultdict(list), {}
    for run in sorted(runs, key=lambda run: not isinstance(run, Finished)):
        key = run.smoke, json.dumps(_compared(run), sort_keys=True)
        # a pruned run has no score: it belongs to those that are scored as it would have been
        protocol = run.protocol if isinstance(run, Finished) else protocols.get(key)
        protocols.setdefault(key, protocol)
        alike[protocol, *key].append(run)
    parted, seen = [], Counter()
    for members in alike.values():
        first = members[0]
        label = _label(first, [others[0] for others in alike.values()])
        seen[label] += 1
        label += f" ({seen[label]})" * (seen[label] > 1)
        parted.append(Group(label, _data_name(first), members))
    return sorted(parted, key=lambda group: (group.runs[0].smoke, -len(group.finished)))


def _label(run: Recorded, others: Sequence[Recorded]) -> str:
    """Returns a run's data and score, and the options that others of that data have otherwise."""

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
    options = {k: v for k, v in run.flat.items() if k.split(".")[0] in axes and k not in other}
    return {"evaluation.labels": "balanced"} | options  # the default before it was an option


def mixed(parted: Sequence[Group]) -> str:
    """Says which runs are not compared with one another; empty if all are."""
    if len(parted) < 2:
        return ""
    members = [f"{group.label}: {named(group.runs)}" for group in parted]
    return (
        f"not compared with one another: {'; '.join(members)}. Each has a table of its own, and a "
        "figure is of the first that it can be drawn of"
    )


def relative_paths(runs: Sequence[Run]) -> dict[Path, str]:
    """Returns {path of a run: its path below the directory that all have in common}."""
    if not runs:
        return {}
    root = os.path.commonpath([run.path.parent for run in runs])
    return {run.path: run.path.relative_to(root).as_posix() for run in runs}


def named(runs: Sequence[Recorded]) -> str:
    """Returns the first one's name, and how many others there are."""
    more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    return f"{runs[0].path.name}{more}"
