"""What a value of a YAML may be, and how an error shows what it may not."""

__all__ = ["is_number", "is_word", "named", "one_line", "plain", "shown"]

import json
import reprlib
from typing import Any

LONGEST = 1000  # characters of a word, a path or a list as JSON
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 60


def is_number(value: Any) -> bool:
    """Returns whether a value is a number that a config may hold: finite, no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def is_word(value: Any) -> bool:
    """Returns whether a value is a text of one line that a terminal can show."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST and value.isprintable()


def plain(value: Any) -> Any:
    """Returns a list as JSON, None for a list that has none, anything else as it is."""
    if not isinstance(value, list):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return None


def named(value: Any) -> str:
    """Returns a value as an error names it that puts it in quotes itself."""
    return value if is_word(value) else shown(value)


def shown(value: Any) -> str:
    """Returns a value as a line of an error, cut where it is long."""
    try:
        return SHORT.repr(value)
    except ValueError:
        return "a huge number"


def one_line(error: Exception) -> str:
    """Returns an error's message as one line."""
    return " ".join(str(error).split())[:300]
