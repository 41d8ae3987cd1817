"""Draws the figures and tables that run directories allow: `python -m analysis DIR...`."""

__all__ = ["main"]

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import docstring_parser

from analysis import ASKED, NAMES, draw_all
from dtr_lightning.commands import INTERRUPTED, Options, quiet
from dtr_lightning.errors import UserError

PROTOCOLS = [figure for figure in ASKED if hasattr(figure, "Protocol")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and prints what was written and left out; returns the exit code."""
    parser = Options(__doc__)
    parser.prog = "python -m analysis"
    parser.add_argument(
        "directories",
        nargs="+",
        metavar="DIR",
        help="a run, a sweep, or any directory above runs; name single runs to select them",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"draw only these: {', '.join(NAMES)}"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="for all files (default: DIR/figures, tables in DIR)"
    )
    parser.add_argument(
        "--report", action="store_true", help="also write report.html, one file for a reader"
    )
    for figure in PROTOCOLS:
        told = docstring_parser.parse(figure.Protocol.__doc__ or "")
        about = {p.arg_name: " ".join(str(p.description).split()) for p in told.params}
        group = parser.add_argument_group(f"--only {figure.NAME}", told.short_description)
        for option in fields(figure.Protocol):
            words = get_args(get_type_hints(figure.Protocol)[option.name])
            group.add_argument(
                f"--{figure.NAME}.{option.name}",
                type=type(option.default),
                choices=words or None,
                metavar=None if words else option.name.upper(),
                help=f"{about[option.name]} (default: {option.default})".replace("%", "%%"),
            )
    quiet()
    try:
        given = parser.parse_args(arguments)
        protocols = _protocols(vars(given))
        written, left_out = draw_all(
            given.directories, given.out, given.only, given.report, protocols
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the next run", file=sys.stderr)
        return INTERRUPTED
    for name, reason in left_out:
        print(f"{name}: {reason}")
    for path in written:
        print(path)
    return 0


def _protocols(given: dict[str, Any]) -> dict[str, Any]:
    """Returns the protocols of asked figures; UserError for an option of one that is not asked."""
    found = {}
    for figure in PROTOCOLS:
        start = f"{figure.NAME}."
        options = {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}
        options = {name: value for name, value in options.items() if value is not None}
        if options and figure.NAME not in (given["only"] or ()):
            raise UserError(f"--{start}{next(iter(options))} needs --only {figure.NAME}")
        found[figure.NAME] = figure.Protocol(**options)
    return found


if __name__ == "__main__":
    sys.exit(main())
