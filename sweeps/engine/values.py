"""The values in a sweep's YAML: what an option may hold, and how an error shows it."""

__all__ = [
    "check_options",
    "expand",
    "finite",
    "is_number",
    "is_word",
    "list_as_json",
    "named",
    "one_line",
    "option",
    "shown",
]

import itertools
import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any

from dtr_lightning.errors import UserError

LARGEST = 1_000_000  # points of a sweep
LONGEST = 1000  # characters of a word, a path or a list as JSON
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 60


def finite(value: Any) -> bool:
    """Returns whether a value is a finite number and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def is_number(value: Any) -> bool:
    """Returns whether a value is a number of a size that an option can have."""
    return finite(value) and abs(value) < 1e12


def is_word(value: Any) -> bool:
    """Returns whether a value is a text of one line that a terminal can show."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST and value.isprintable()


def list_as_json(value: Any) -> Any:
    """Returns a list as JSON, None for a list that JSON cannot hold, any other value unchanged."""
    if not isinstance(value, list):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return None


def named(value: Any) -> str:
    """Returns a value for an error that puts it in quotes itself."""
    return value if is_word(value) else shown(value)


def shown(value: Any) -> str:
    """Returns a value as an error shows it, cut where it is long."""
    try:
        return SHORT.repr(value)
    except ValueError:
        return "a huge number"


def one_line(error: Exception) -> str:
    """Returns an error's message as one line."""
    return " ".join(str(error).split())[:300]


def option(text: str) -> tuple[str, Any]:
    """Returns key and value of `key=value`, as text where only the option's type can read it."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UserError(f"--set takes OPTION=VALUE, such as data.root=images; got {text!r}")
    if key == "seed":
        raise UserError("--set seed=... is not valid; use --seeds N")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return key, value
    return key, parsed if json.dumps(parsed) == value else value


def check_options(options: Any, where: str) -> dict[str, Any]:
    """Returns a mapping of dotted options to values that JSON can hold."""
    if not isinstance(options, Mapping) or not all(map(is_word, options)):
        raise UserError(f"{where} must map dotted options to values")
    for key, value in options.items():
        too_large = isinstance(value, int | float) and not abs(value) < 1e12
        if list_as_json([value]) is None or too_large:
            raise UserError(
                f"{where}: {key} must be a number, a word or a list, not {shown(value)}"
            )
    return dict(options)


def expand(grid: list[Any], where: str) -> list[dict[str, Any]]:
    """Returns one assignment of options per point: the product of each entry's lists, in order."""
    if not grid:
        raise UserError(f"{where}: grid has no entries, such as {{router: NoRouting}}")
    assignments = []
    for number, entry in enumerate(grid, 1):
        check_options(entry, f"{where}: entry {number} of grid")
        if "seed" in entry:
            raise UserError(f"{where}: entry {number} of grid sets seed; use seeds instead")
        lists = [
            [list_as_json(x) for x in value] if isinstance(value, list) else [value]
            for value in entry.values()
        ]
        for key, values in zip(entry, lists, strict=True):
            for value in values or [None]:
                if not (isinstance(value, bool) or is_word(value) or is_number(value)):
                    raise UserError(
                        f"{where}: {key} in entry {number} of grid must be a number, a word or "
                        f"a list of these, not {shown(value)}; an option that is a list itself, "
                        "such as router.knots, is a list in that list: [[0, 1]]"
                    )
        if math.prod(map(len, lists)) > LARGEST:
            raise UserError(f"{where}: entry {number} of grid has more than {LARGEST:,} points")
        assignments += [
            dict(zip(entry, values, strict=True)) for values in itertools.product(*lists)
        ]
    return assignments
