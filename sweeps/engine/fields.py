"""The entries of a sweep's YAML, each checked for its own form; UserError says where and what."""

__all__ = [
    "budget",
    "check_options",
    "expand",
    "objectives",
    "one_of",
    "option",
    "positive",
    "pruning",
    "starts",
    "whole",
]

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dtr_lightning.errors import UserError, choices
from dtr_lightning.rundir.run import OBJECTIVES
from sweeps.engine.space import Axis
from sweeps.engine.values import is_number, is_word, named, plain, shown

DIRECTIONS = ("minimize", "maximize")
PRUNING = ("median", "halving", "hyperband")
LARGEST = 1_000_000  # points, seeds and settings of a sweep


def one_of(value: Any, valid: Sequence[str], what: str) -> str:
    """Returns a word that is one of the valid ones."""
    if not isinstance(value, str) or value not in valid:
        raise choices(what, named(value), valid)
    return value


def whole(value: Any, what: str) -> int:
    """Returns a whole number from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise UserError(f"{what} is to be a whole number from 1 to {LARGEST:,}, not {shown(value)}")
    return value


def positive(value: Any, what: str, where: str) -> float | None:
    """Returns a positive number, None for None."""
    if value is None:
        return None
    if not is_number(value) or not 0 < value < 1e9:
        raise UserError(f"{where}: {what} is to be a positive number, not {shown(value)}")
    return float(value)


def objectives(content: Mapping[str, Any], where: str) -> dict[str, str]:
    """Returns which numbers of results.json a sweep is about, and which way is better."""
    metric = content.get("metric", "score")
    for name in [metric] if is_word(metric) else metric if isinstance(metric, Mapping) else ():
        if name not in OBJECTIVES:
            raise choices(f"metric in {where}", named(name), OBJECTIVES)
    if is_word(metric):
        direction = content.get("direction", "minimize")
        return {metric: one_of(direction, DIRECTIONS, f"direction in {where}")}
    if not isinstance(metric, Mapping) or not metric:
        raise UserError(
            f"{where}: metric is to be the name of a number in results.json, or several as in "
            "{score: minimize, accuracy: maximize}"
        )
    if "direction" in content:
        raise UserError(f"{where}: direction is for one metric; several say theirs themselves")
    return {
        key: one_of(value, DIRECTIONS, f"direction of {key} in {where}")
        for key, value in metric.items()
    }


def pruning(value: Any, where: str) -> dict[str, Any] | None:
    """Returns the options of pruning with their kind, None for none."""
    if value is None:
        return None
    options = {"kind": value} if isinstance(value, str) else value
    check_options(options, f"{where}: pruning")
    one_of(options.get("kind"), PRUNING, f"kind of pruning in {where}")
    return dict(options)


def budget(
    content: Mapping[str, Any],
    trials: int | None,
    hours: float | None,
    smallest: int | None,
    where: str,
) -> dict[str, Any]:
    """Returns how long a search goes on, {trials, hours} of which one is None.

    trials and hours, if given, replace the sweep's; `smallest`, if given, any.
    """
    if trials is None and hours is None:
        trials, hours = content.get("trials"), content.get("hours")
    if (trials is None) == (hours is None):
        raise UserError(f"{where}: a search needs either trials or hours")
    if trials is not None:
        trials = whole(trials, "trials")
    hours = positive(hours, "hours", where)
    return {"trials": smallest, "hours": None} if smallest else {"trials": trials, "hours": hours}


def starts(
    content: Mapping[str, Any], space: Mapping[str, Axis], where: str
) -> list[dict[str, Any]]:
    """Returns the settings that a search tries first."""
    starts = content.get("start") or []
    if not isinstance(starts, list):
        raise UserError(f"{where}: start is to be a list of settings such as {{router: DTR}}")
    for number, start in enumerate(starts, 1):
        check_options(start, f"{where}: entry {number} of start")
        for key, value in start.items():
            if key not in space:
                raise choices(f"key in entry {number} of start of {where}", key, space)
            space[key].check(value, f"{where}: {key} in entry {number} of start")
    return [dict(start) for start in starts]


def option(text: str) -> tuple[str, Any]:
    """Returns key and value of `key=value`, the text itself where a type must say what it is."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UserError(f"--set takes OPTION=VALUE, such as data.root=images; got {text!r}")
    if key == "seed":
        raise UserError("--set seed=... is not valid; use --seeds N")
    try:
        read = json.loads(value)
    except ValueError:
        return key, value
    return key, read if json.dumps(read) == value else value


def check_options(options: Any, where: str) -> dict[str, Any]:
    """Returns a mapping of options, whose values are what JSON knows."""
    if not isinstance(options, Mapping) or not all(map(is_word, options)):
        raise UserError(f"{where} is to map dotted options to values")
    for key, value in options.items():
        if plain([value]) is None or (isinstance(value, int | float) and abs(value) >= 1e12):
            raise UserError(
                f"{where}: {key} is to be a number, a word or a list, not {shown(value)}"
            )
    return dict(options)


def expand(grid: Any, where: str) -> list[dict[str, Any]]:
    """Returns one assignment of options per point: the products of all entries, in order."""
    if not isinstance(grid, list) or not grid:
        raise UserError(f"{where}: grid is to be a list of entries such as {{router: NoRouting}}")
    assignments = []
    for number, entry in enumerate(grid, 1):
        check_options(entry, f"{where}: entry {number} of grid")
        if "seed" in entry:
            raise UserError(f"{where}: entry {number} of grid sets seed; use seeds instead")
        lists = [
            [plain(x) for x in value] if isinstance(value, list) else [value]
            for value in entry.values()
        ]
        for key, values in zip(entry, lists, strict=True):
            for value in values or [None]:
                if not (isinstance(value, bool) or is_word(value) or is_number(value)):
                    raise UserError(
                        f"{where}: {key} in entry {number} of grid is to be a number, a word or "
                        f"a list of these, not {shown(value)}; an option that is a list itself, "
                        "such as router.knots, is a list in that list: [[0, 1]]"
                    )
        if math.prod(map(len, lists)) > LARGEST:
            raise UserError(f"{where}: entry {number} of grid has more than {LARGEST:,} points")
        assignments += [
            dict(zip(entry, values, strict=True)) for values in itertools.product(*lists)
        ]
    return assignments
