"""The keys of a sweep's YAML: their types, their defaults and what they mean.

Entries of `grid` and `space` have the dotted options of train.py:

    grid: [{router: DTR, router.alpha: [1, 4]}, {router.knots: [[0, 1], [0, 0.2, 1]]}]
    space: {router: [NoRouting, DTR], router.alpha: {low: 0.5, high: 8, log: true}}
"""

__all__ = ["Form", "GridForm", "SearchForm", "read_form"]

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from jsonargparse import ArgumentParser
from jsonargparse.typing import restricted_number_type

from dtr_lightning.errors import UserError, choices
from dtr_lightning.rundir.run import OBJECTIVES
from sweeps.engine.values import is_word, named, shown

SEARCHES = ("tpe", "cmaes", "nsga2", "random")
Direction = Literal["minimize", "maximize"]
if TYPE_CHECKING:
    Whole = int
    Positive = float
else:
    Whole = restricted_number_type("Whole", int, [(">=", 1), ("<=", 1_000_000)])
    Positive = restricted_number_type("Positive", float, [(">", 0), ("<", 1e9)])
KEY = re.compile(r'Parser key "(\w+)|arguments are required: (\w+)')


@dataclass(frozen=True, kw_only=True)
class Form:
    """The keys that every sweep may have; jsonargparse leaves what is in a bare dict as it is.

    Args:
        config: path of the base config, relative to this file
        kind: grid, or a search: tpe, cmaes, nsga2 or random
        seeds: a whole number from 1 to 1,000,000; every point is trained with seeds 0 .. seeds - 1
        metric: a number of results.json, or several, each with minimize or maximize, as in
            {score: minimize, macs: minimize}
        direction: minimize or maximize; of one metric
        pruning: median, halving or hyperband, or one with options of Optuna's pruner, as in
            {kind: median, n_warmup_steps: 200}
        smoke: options of --smoke, as in {trainer.max_steps: 10}
        paper: keys that --paper replaces, as in {config: .., grid: [..]}
        steps_per_second: a number above 0 and below 1e9; known of the machine that the sweep is
            meant for, --dry-run then counts GPU-hours
        gpus: a whole number; GPUs of one training at steps_per_second
        source: a text; where steps_per_second is from, or what is assumed
        images: sizes of images that need not be there yet, as in {in_channels: 4, image_size: 32,
            num_classes: 1000}, and `pixels`, the side of what is decoded; --dry-run counts by them
        published: numbers by the label of a point, as in {table: Table 2, rows: {DTR: {FID: 8.9}}}
        also: a list of sweeps whose runs belong to the same table
    """

    config: str
    kind: str = "grid"
    seeds: Whole = 1
    metric: str | dict[str, Direction] = "score"
    direction: Direction | None = None
    pruning: Literal["median", "halving", "hyperband"] | dict | None = None
    smoke: dict | None = None
    paper: dict | None = None
    steps_per_second: Positive | None = None
    gpus: Whole = 1
    source: str | None = None
    images: dict[str, Whole] | None = None
    published: dict | None = None
    also: list[str] | None = None

    def objectives(self, where: str) -> dict[str, Direction]:
        """Returns {number of results.json: minimize | maximize}."""
        if isinstance(self.metric, str):
            metrics = {self.metric: self.direction or "minimize"}
        elif self.direction:
            raise UserError(f"{where}: direction is for one metric; several have theirs in metric")
        else:
            metrics = self.metric
        for name in metrics:
            if name not in OBJECTIVES:
                raise choices(f"metric in {where}", named(name), OBJECTIVES)
        return metrics


@dataclass(frozen=True, kw_only=True)
class GridForm(Form):
    """The keys of a grid.

    Args:
        grid: a list of entries, as in {router: [NoRouting, DTR]}; each is the product of its lists
    """

    grid: list


@dataclass(frozen=True, kw_only=True)
class SearchForm(Form):
    """The keys of a search.

    Args:
        space: a mapping of options to choices or ranges, as in {router: [NoRouting, DTR]}
        start: a list of settings to try first, as in {router: DTR}; CMA-ES begins at the first
        trials: a whole number from 1 to 1,000,000; settings to try
        hours: a number above 0 and below 1e9; of training, all workers together, instead of trials
        sampler: options of Optuna's sampler, as in {n_startup_trials: 10}
    """

    space: dict
    start: list | None = None
    trials: Whole | None = None
    hours: Positive | None = None
    sampler: dict | None = None


class _Reader(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(message)


def read_form(content: Mapping[str, Any], where: str) -> GridForm | SearchForm:
    """Returns a YAML's keys, each of its type; UserError names a wrong key and its valid values."""
    kind = content.get("kind", "grid")
    if kind not in (valid := ("grid", *SEARCHES)):
        raise choices(f"kind in {where}", named(kind), valid)
    form = GridForm if kind == "grid" else SearchForm
    reader = _Reader(add_help=False)
    reader.add_class_arguments(form)
    meanings = {a.dest: " ".join((a.help or "").split()) for a in reader._actions}
    defaults = {field.name: field.default for field in fields(form)}
    for key, value in content.items():
        if key not in meanings:
            raise choices(f"key in {where} of kind {kind}", named(key), meanings)
        if value is None and defaults[key] is not None:
            raise UserError(f"{where}: {key} is {shown(None)}; valid: {meanings[key]}")
    try:
        parsed = form(**reader.parse_object(dict(content)).as_dict())
    except (ValueError, RecursionError) as error:
        if (wrong := KEY.search(str(error))) is None:
            raise UserError(f"{where}: its lists are nested too deeply") from None
        key = wrong[1] or wrong[2]
        given = f"{key} is {shown(content[key])}" if key in content else f"{key} is missing"
        raise UserError(f"{where}: {given}; valid: {meanings[key]}") from error
    if not is_word(parsed.config):
        raise UserError(f"{where}: config is {shown(parsed.config)}; valid: {meanings['config']}")
    return parsed
