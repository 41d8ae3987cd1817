"""Draws the figures and tables that run directories allow: `python -m analysis DIR...`."""

__all__ = ["main"]

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import docstring_parser

from analysis.catalog import PROBES, figure, valid_names
from dtr_lightning.cli.commands import INTERRUPTED, Options, command, loading
from dtr_lightning.errors import UserError

HOME = Path(__file__).resolve().parent.parent


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and prints what was written and left out; returns the exit code."""
    loading()
    parser = Options(__doc__)
    parser.prog = "python -m analysis"
    parser.add_argument(
        "directories",
        nargs="*",
        metavar="DIR",
        help="a run, a sweep, or any directory above runs; name single runs to select them",
    )
    parser.add_argument(
        "--findings",
        action="store_true",
        help="write docs/findings.md from results/findings; sweeps named as DIR are archived there "
        "first",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"draw only these: {', '.join(valid_names())}"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="for all files (default: DIR/figures, tables in DIR)"
    )
    parser.add_argument(
        "--report", action="store_true", help="also write report.html, one file for a reader"
    )
    arguments = sys.argv[1:] if arguments is None else arguments
    probes = _probes(arguments)
    for name, config in probes.items():
        described = docstring_parser.parse(config.__doc__ or "")
        about = {p.arg_name: " ".join(str(p.description).split()) for p in described.params}
        group = parser.add_argument_group(f"--only {name}", described.short_description)
        for option in fields(config):
            words = get_args(get_type_hints(config)[option.name])
            group.add_argument(
                f"--{name}.{option.name}",
                type=type(option.default),
                choices=words or None,
                metavar=None if words else option.name.upper(),
                help=f"{about[option.name]} (default: {option.default})".replace("%", "%%"),
            )
    given = parser.parse_args(arguments)
    if given.findings:
        return _findings(given)
    if not given.directories:
        raise UserError("name a directory of runs, or give --findings")
    configs = _configs(vars(given), probes)
    from analysis.draw import draw_all

    try:
        written, left_out = draw_all(
            given.directories, given.out, given.only, given.report, configs
        )
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the next run", file=sys.stderr)
        return INTERRUPTED
    for name, reason in left_out:
        print(f"{name}: {reason}")
    for path in written:
        print(path)
    return 0


def _findings(given: Namespace) -> int:
    """Archives the sweeps that are named, writes the page, and prints what was written."""
    from analysis.findings.archive import Archive
    from analysis.findings.cka import measure_cka
    from analysis.findings.collect import collect
    from analysis.findings.cost import read_cost
    from analysis.findings.page import write_findings

    if other := next((o for o in ("only", "out", "report") if getattr(given, o)), None):
        raise UserError(f"--findings takes no --{other}")
    archives = HOME / "results" / "findings"
    read_cost(archives)  # told before anything is written
    for path, runs in collect([*map(Path, given.directories)], archives, measure_cka):
        print(f"{path}: {runs} runs")
    docs = HOME / "docs"
    with Archive(archives) as archive:
        archive.check()
        for path in write_findings(
            archive, docs / "findings.md", docs / "images" / "findings", HOME / "README.md"
        ):
            print(path)
    return 0


def _probes(arguments: Sequence[str]) -> dict[str, type]:
    """Imports the probes that the arguments name, all for --help; returns {name: its config}."""
    words = " ".join(arguments)
    everything = {"-h", "--help"} & {*arguments}
    named = [name for name in PROBES if everything or name in words]
    return {name: figure(name).CONFIG for name in named if hasattr(figure(name), "CONFIG")}


def _configs(given: dict[str, Any], probes: Mapping[str, type]) -> dict[str, Any]:
    """Returns the configs of named probes; UserError for an option of one that is not named."""
    configs = {}
    for name, config in probes.items():
        start = f"{name}."
        options = {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}
        options = {option: value for option, value in options.items() if value is not None}
        if options and name not in (given["only"] or ()):
            raise UserError(f"--{start}{next(iter(options))} needs --only {name}")
        configs[name] = config(**options)
    return configs


if __name__ == "__main__":
    sys.exit(main())
