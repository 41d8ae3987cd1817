"""jsonargparse's messages as one line that names what is wrong and the valid choices."""

__all__ = ["Choices", "explain", "explain_choice"]

import difflib
import importlib
import re
from collections.abc import Collection, Mapping, Sequence

from dtr_lightning.cli.commands import in_our_words

Choices = Mapping[str, Mapping[str, Collection[str]]]  # axis -> choice -> its options

UNKNOWN_OPTION = re.compile(
    r"Option '([^']+)' is not accepted|nrecognized arguments: (.+)|(--print_shtab) is no longer"
)
NO_VALUE = re.compile(r"argument (?:.*, )?--([\w.]+): expected one argument")
WRONG_HELP = re.compile(r"--(\w+)\.help: .*: (.*)")
KEY = re.compile(r'Parser key "([\w.]+)"')
GIVEN = re.compile(r"(?:Given value|Got value): (.*)")
TYPES = {
    "bool": "true, false",
    "tuple": "a list in brackets, as [0, 1]",
    "list": "a list in brackets, as [0, 1]",
}


def explain(message: str, options: Mapping[str, str], axes: Choices) -> str:
    """Returns the message of a parser of all options as one line.

    options: what the parser takes, with its help. axes: the choices on every axis.
    """
    if match := UNKNOWN_OPTION.search(message):
        given = match[match.lastindex or 1]
        word = given.split()[0]
        bare = not word.startswith("-") and "=" not in word and word not in options
        if match.lastindex == 2 and bare:
            return f"{word!r} belongs to no option; give --OPTION VALUE, or --OPTION=VALUE"
        return _unknown_option(given, options, axes)
    if missing := re.search(r"arguments are required: (\w+)", message):
        return f"give --{missing[1]}; valid: {', '.join(axes[missing[1]])}"
    if match := NO_VALUE.search(message):
        name = match[1]
        valid = f"; valid: {', '.join(axes[name])}" if name in axes else f": {options[name]}"
        return " ".join(f"--{name} needs a value{valid}".split())
    if match := WRONG_HELP.search(message):
        return f"unknown {match[1]} {match[2]!r}; valid: {', '.join(axes[match[1]])}"
    key, given = KEY.search(message), GIVEN.search(message)
    if key and "Unable to load config" in message:
        start = f"{key[1]}."
        valid = [option.removeprefix(start) for option in options if option.startswith(start)]
        return f"{key[1]} takes a mapping of its options; valid: {', '.join(valid)}"
    if not (key and given):
        return in_our_words(message) or " ".join(message.removeprefix("Parser key ").split())
    name = key[1].rpartition(".")[2]
    details = [line.strip()[2:] for line in message.splitlines() if line.strip()[:2] == "- "]
    for absent in (line.strip("'") for line in details if line[:1] == "'"):
        if f"{absent}=None" in given[1]:
            return f"give --{key[1]}.{absent}; it has no default"
    inner = [line for line in details if line.startswith(("unknown option", "bad value"))]
    if inner:
        return f"{name}: {inner[0]}"
    if name in axes and (wrong := _wrong_choice(message, given[1])):
        what, lower = name.replace("_", " "), {choice.lower(): choice for choice in axes[name]}
        word = given[1].strip().lower()
        near = [] if "." in word else difflib.get_close_matches(word, lower, n=1)
        wrong += f" (did you mean {lower[near[0]]}?)" if near else ""
        return f"unknown {what} {wrong}; valid: {', '.join(axes[name])}, or an import path"
    return f"bad value {given[1].strip()!r} for {key[1]}; valid: {_expected(message)}"


def explain_choice(
    message: str,
    options: Sequence[str],
    axes: Choices,
    axis: str,
    choice: str,
    linked: Collection[str],
) -> str:
    """Returns the message of the parser of one choice's options as one line.

    linked: the options of the axis that follow from other axes.
    """
    match = UNKNOWN_OPTION.search(message)
    if not match:
        return explain(message, dict.fromkeys(options, ""), {})
    name = _name(match[match.lastindex or 1])
    if name == "class_path":
        return f"unknown option {name!r}; valid: {{class_path: NAME, init_args: {{OPTION: VALUE}}}}"
    if name in linked:
        return f"unknown option {name!r}: it follows from other options; leave it out"
    having = sorted((other for other in axes[axis] if name in axes[axis][other]), key=len)
    if having:
        more = f" (or {', '.join(having[1:])})" if having[1:] else ""
        own = f"; valid for {choice}: {', '.join(options)}" if options else ""
        return f"unknown option {name!r}: {choice} has none; give --{axis} {having[0]}{more}{own}"
    known = [*options, *(option for takes in axes[axis].values() for option in takes)]
    near = difflib.get_close_matches(name, dict.fromkeys(known), n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"unknown option {name!r}{hint}; valid for {choice}: {', '.join(options) or 'none'}"


def _name(given: str) -> str:
    return given.split()[0].lstrip("-").partition("=")[0]


def _unknown_option(given: str, options: Mapping[str, str], axes: Choices) -> str:
    name = _name(given)
    same = {option.replace("-", "_"): option for option in options}
    if right := same.get(name.replace("-", "_")):
        return f"unknown option {given.split()[0]!r}; write --{right}"
    group, _, last = name.rpartition(".")
    valid = [option for option in options if group and option.startswith(f"{group}.")]
    of_choices = {
        f"{axis}.{option}": None
        for axis, choices in axes.items()
        for takes in choices.values()
        for option in takes
    }
    known = [*options, *of_choices]
    near = [option for option in known if _last(option) == last]
    if not near and not valid:
        near = difflib.get_close_matches(name, known, n=1)
    if not near:
        similar = difflib.get_close_matches(last, map(_last, valid or known), n=1)
        near = [option for option in valid or known if _last(option) in similar]
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    valid = valid or list(dict.fromkeys(option.partition(".")[0] for option in options))
    return f"unknown option {name!r}{hint}; valid: {', '.join(valid)}"


def _last(option: str) -> str:
    return option.rpartition(".")[2]


def _wrong_choice(message: str, given: str) -> str | None:
    """Returns the name that is no choice on an axis, with the reason if there is more to say."""
    match = re.search(r"'class_path': '([^']+)'", given)
    path = match[1] if match else given
    name = repr(path)
    if missing := re.search(r"No module named '[^']+'|module '.*' has no attribute.*", message):
        return f"{name} ({missing[0]})"
    if "does not correspond to a subclass" in message:
        return f"{name} (not a class of this kind)"
    if "." in path:  # a bug in a person's own module keeps its traceback
        cls = getattr(importlib.import_module(path.rpartition(".")[0]), path.rpartition(".")[2])
        if lacks := ", ".join(sorted(getattr(cls, "__abstractmethods__", ()))):
            return f"{name} (it lacks the methods {lacks})"
        if untyped := re.search(r"Parameter '(\w+)' from .* does not specify a type", message):
            return f"{name} (its argument {untyped[1]} has no type)"
    return name


def _expected(message: str) -> str:
    """Returns the types or words that are accepted."""
    words = [w for part in re.findall(r"Literal\[(.*?)\]", message) for w in part.split(", ")]
    kinds = re.findall(r"Expected an? (?:<class '([\w.]+)'>|([^.\n]+))", message)
    kinds = [first or second for first, second in kinds]
    kinds = [TYPES.get(kind, kind) for kind in kinds if kind not in ("NoneType", "typing")]
    kinds = [re.sub(r"tuple with (\d+) elements", r"a list of \1 in brackets", k) for k in kinds]
    if words:
        return ", ".join(dict.fromkeys([*(w.strip("'") for w in words), *kinds]))
    return " or ".join(dict.fromkeys(kinds)) or "see --help"
