"""Draws the figures and tables that run directories allow: `python -m analysis DIR...`."""

__all__ = ["main"]

import argparse
import sys
from collections.abc import Sequence

from analysis import NAMES, draw_all
from dtr_lightning.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and prints what was written and left out; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
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
    given = parser.parse_args(arguments)
    try:
        written, left_out = draw_all(given.directories, given.out, given.only, given.report)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, reason in left_out:
        print(f"{name}: {reason}")
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
