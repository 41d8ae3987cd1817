"""jsonargparse's messages as one line that names what is wrong and the valid choices."""

__all__ = ["explain"]

import difflib
import re
from collections.abc import Sequence

UNKNOWN_OPTION = re.compile(r"Option '([^']+)' is not accepted|nrecognized arguments: (.+)")
KEY = re.compile(r'Parser key "([\w.]+)"')
GIVEN = re.compile(r"(?:Given value|Got value): (.*)")


def explain(message: str, options: Sequence[str], axes: dict[str, Sequence[str]]) -> str:
    """Returns the message as one line.

    options: what the parser that complains takes. axes: the valid names on every axis.
    """
    if found := UNKNOWN_OPTION.search(message):
        return _unknown_option(found[1] or found[2], options)
    if missing := re.search(r"arguments are required: (\w+)", message):
        return f"give --{missing[1]}; valid: {', '.join(axes[missing[1]])}"
    key, given = KEY.search(message), GIVEN.search(message)
    if not (key and given):
        return " ".join(message.removeprefix("Parser key ").split())
    name = key[1].rpartition(".")[2]
    details = [line.strip()[2:] for line in message.splitlines() if line.strip()[:2] == "- "]
    for absent in (line.strip("'") for line in details if line[:1] == "'"):
        if f"{absent}=None" in given[1]:
            return f"give --{key[1]}.{absent}; it has no default"
    inner = [line for line in details if line.startswith(("unknown option", "bad value"))]
    if inner:
        return f"{name}: {inner[0]}"
    if name in axes and (wrong := _wrong_choice(message, given[1])):
        what = name.replace("_", " ")
        return f"unknown {what} {wrong}; valid: {', '.join(axes[name])}, or an import path"
    return f"bad value {given[1].strip()!r} for {key[1]}; valid: {_expected(message)}"


def _unknown_option(given: str, options: Sequence[str]) -> str:
    name = given.split()[0].lstrip("-").partition("=")[0]
    group = [o for o in options if "." in name and o.startswith(name.rpartition(".")[0] + ".")]
    plain = list(dict.fromkeys(o.partition(".")[0] for o in options))
    valid = group or plain
    near = difflib.get_close_matches(name, options, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"unknown option {name!r}{hint}; valid: {', '.join(valid) or 'none'}"


def _wrong_choice(message: str, given: str) -> str | None:
    """Returns the name that is no choice on an axis, with the reason if there is more to say."""
    name = re.search(r"'class_path': '([^']+)'", given)
    name = repr(name[1] if name else given)
    if missing := re.search(r"No module named '[^']+'|module '.*' has no attribute.*", message):
        return f"{name} ({missing[0]})"
    if "does not correspond to a subclass" in message:
        return f"{name} (not a class of this kind)"
    return name


def _expected(message: str) -> str:
    """Returns the types or words that are accepted."""
    words = [w for part in re.findall(r"Literal\[(.*?)\]", message) for w in part.split(", ")]
    if words:
        return ", ".join(dict.fromkeys(w.strip("'") for w in words))
    kinds = re.findall(r"Expected an? (?:<class '([\w.]+)'>|([^.\n]+))", message)
    kinds = [first or second for first, second in kinds if first != "NoneType"]
    return " or ".join(dict.fromkeys(kinds)) or "see --help"
