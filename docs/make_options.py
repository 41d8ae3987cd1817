"""Writes the reference of options into docs/options.md, from the classes themselves.

    python docs/make_options.py

What is below the marker in the page is replaced; tests/test_pages.py compares.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import docstring_parser

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dtr_lightning.config.parser import AXES, DEFAULTS, Parser, make_parser
from dtr_lightning.config.registry import options, valid_choices

PAGE = Path(__file__).parent / "options.md"
MARKER = "<!-- below: python docs/make_options.py -->\n"
TITLES = {
    "router": "what a block reads at a timestep",
    "loss_weight": "how much each timestep counts",
    "gradients": "how the gradients of timestep ranges become one step",
    "model": "the network",
    "diffusion": "the process that is learned",
    "sampler": "how images are drawn",
    "data": "the images",
    "features": "what scores compare images by",
}
GROUPS = {
    "module": "Optimiser and average",
    "evaluation": "Evaluation",
    "checkpoint": "Checkpoints",
    "trainer": "Trainer",
}


def generated() -> str:
    """Returns the part of the page that follows from the classes."""
    parts = [line for axis in TITLES for line in axis_lines(axis)]
    for group, title in GROUPS.items():
        parts += [f"## {title}: `--{group}`", "", *table(make_parser(groups=[group])), ""]
    return "\n".join(parts)


def axis_lines(axis: str) -> Iterator[str]:
    """Yields the section of an axis: every class that the package brings, with its options."""
    base, _ = AXES[axis]
    yield from (f"## `--{axis}`: {TITLES[axis]}", "")
    if axis in DEFAULTS:
        yield from (f"Default: `{DEFAULTS[axis]}`.", "")
    choices = valid_choices(base)
    for name, cls in choices.items():
        if not cls.__module__.startswith("dtr_lightning."):
            continue
        yield from (f"### `{name}`", "", *described(cls), "")
        rows, parent = options_of(axis, cls), cls.__bases__[0]
        inherited = parent in choices.values() and set(rows) <= set(options_of(axis, parent))
        if rows and inherited:
            names = ", ".join(row.split("|")[1].strip() for row in rows[2:])
            yield from (f"Options, as of `{parent.__name__}`: {names}.", "")
        elif rows:
            yield from (*rows, "")


def options_of(axis: str, cls: type) -> list[str]:
    """Returns the table of a class's options."""
    base, linked = AXES[axis]
    parser = Parser()
    parser.add_class_arguments(cls, axis, skip=linked & options(base, cls.__name__))
    return table(parser)


def described(cls: type) -> list[str]:
    """Returns the paragraphs of a class's docstring, without those on its errors."""
    about = docstring_parser.parse(cls.__doc__ or "")
    paragraphs = f"{about.short_description}\n\n{about.long_description or ''}".split("\n\n")
    kept = [p.strip() for p in paragraphs if p.strip() and not p.startswith("UserError")]
    return "\n\n".join(kept).split("\n")


def table(parser: Parser) -> list[str]:
    """Returns the rows for a parser's options, none if it has no options."""
    rows = [row(action) for action in parser._actions if shown(action)]
    return ["| option | default | |", "|---|---|---|", *rows] if rows else []


def shown(action: Any) -> bool:
    """Returns whether an argument is one that a person gives."""
    return not action.dest.endswith(("help", "config")) and "." in action.dest


def row(action: Any) -> str:
    """Returns an option's name, default and explanation, with its choices where they are few."""
    default = "" if action.default is None else f"`{action.default}`"
    hint = getattr(action, "_typehint", None)
    words = get_args(hint) if get_origin(hint) is Literal else ()
    choices = f"; one of {', '.join(f'`{word}`' for word in words)}" if words else ""
    text = " ".join(str(action.help).split()).removesuffix(".").replace("|", r"\|") + choices
    return f"| `--{action.dest}` | {default} | {text} |"


def main() -> None:
    """Rewrites the page below the marker."""
    head = PAGE.read_text().partition(MARKER)[0]
    PAGE.write_text(head + MARKER + "\n" + generated())


if __name__ == "__main__":
    main()
