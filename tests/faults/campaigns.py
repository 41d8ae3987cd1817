"""What a sweep survives: python tests/faults/campaigns.py [--kills 100] [--postgres] [--quick]

Sweeps of tiny trainings on the digits, by two commands at once, are killed (a trial, a command, a
command with its trials) at random moments and in the middle of a checkpoint, of the results, of a
claim and of a database write: the victim is stopped, seen in the act and then killed. When all is
trained the command runs once in peace. Every point must then have one result and one complete
trial, and its results, record and checkpoint must be those of a sweep that was never disturbed.
`--postgres` starts a server of its own and cuts its power in the middle of every sweep. `--quick`
has the tests' stand-in for a training. Linux only.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from dtr_lightning.cli.commands import Options, command
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.provenance import provenance
from dtr_lightning.rundir.run import write_json
from tests.faults.kills import Tally, campaign, reference
from tests.faults.mishaps import MISHAPS, eight_starts
from tests.faults.postgres import Server
from tests.faults.victims import Command, Lab

LIGHT_POINTS = 12
STARTS = "8 commands at one instant"


@dataclass
class Row:
    """A fault, how often it was made, what held, and a line for everything that did not."""

    fault: str
    times: int
    found: str
    wrong: list[str] | None  # None: could not be made here
    seconds: float


def killed(lab: Lab, truth: Path, options: argparse.Namespace, server: Server | None) -> Row:
    """Returns the row of a campaign of SIGKILLs."""
    began = time.monotonic()
    tally = campaign(lab, truth, options.kills, options.seed, server, options.minutes)
    name = "SIGKILLs, PostgreSQL" if server else "SIGKILLs, SQLite"
    return Row(name, tally.kills, _found(tally), tally.wrong, time.monotonic() - began)


def _found(tally: Tally) -> str:
    victims = ", ".join(f"{n} {name}" for name, n in sorted(tally.victims.items()))
    moments = [(name, tally.caught[name], n) for name, n in sorted(tally.aimed.items())]
    acts = ", ".join(f"{name} {n} of {aimed}" for name, n, aimed in moments if name != "random")
    points = tally.count("points")
    lines = [
        f"{points} points of {len(tally.verdicts)} sweeps: {tally.count('lost')} lost, "
        f"{tally.count('twice')} twice, {tally.count('equal')} bit-equal",
        f"killed: {victims}",
        f"in the act: {acts}; at random {tally.aimed['random']}",
    ]
    if tally.restarts:
        lines.append(f"the server's power was cut {tally.restarts} times; while it was away")
        lines.append(f"{tally.refused} commands began and were refused, none left that was at work")
    return "\n".join(lines)


def started(lab: Lab, repetitions: int) -> Row:
    """Returns the row of eight commands that begin at one instant."""
    began = time.monotonic()
    wrong = [line for i in range(repetitions) for line in eight_starts(lab, lab.folder, i)]
    told = "one plan, each point trained once"
    return Row(STARTS, repetitions, told, wrong, time.monotonic() - began)


def parse() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = Options(__doc__)
    add = parser.add_argument
    add("--kills", type=int, default=100, metavar="N", help="default: 100; 0: none")
    add("--minutes", type=float, default=120.0, metavar="M", help="or until they are over")
    add("--points", type=int, default=30, metavar="N", help="of a sweep (default: 30)")
    add("--starts", type=int, default=20, metavar="N", help="repetitions of the 8 commands")
    add("--only", choices=("kills", "mishaps"), help="default: both")
    add("--seed", type=int, default=0, metavar="N", help="of victims and moments")
    add("--postgres", action="store_true", help="kill on PostgreSQL instead of SQLite")
    add("--bin", type=Path, metavar="DIR", help="PostgreSQL's programs (default: pg_config's)")
    add("--quick", action="store_true", help="trainings of milliseconds")
    add("--keep", action="store_true", help="keep the directory of all this")
    add("--json", type=Path, metavar="FILE", help="also write the numbers here")
    return parser.parse_args()


def rows(options: argparse.Namespace, folder: Path, console: Console) -> list[Row]:
    """Makes the faults and returns their rows."""
    lab = Lab(folder, options.points, options.quick)
    light = Lab(folder / "light", LIGHT_POINTS, light=True)
    light.folder.mkdir()
    with console.status("undisturbed"):
        truth = reference(lab)
    found = []
    if options.kills and options.only != "mishaps":
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(Server(options.bin)) if options.postgres else None
            with console.status(f"{options.kills} SIGKILLs"):
                found.append(killed(lab, truth, options, server))
    if options.only == "kills":
        return found
    if options.starts:
        with console.status(STARTS):
            found.append(started(light, options.starts))
    for name, (make, is_light, told) in MISHAPS.items():
        began = time.monotonic()
        with console.status(name):
            wrong = make(light if is_light else lab, truth)
        found.append(Row(name, 1, told, wrong, time.monotonic() - began))
    return found


@command
def main() -> int:
    """Makes the faults and prints the table; returns 1 if anything did not hold."""
    options = parse()
    if not sys.platform.startswith("linux"):
        raise UserError("faults are seen in /proc, which only Linux has")
    console, folder = Console(), Path(tempfile.mkdtemp(prefix="faults"))
    try:
        found = rows(options, folder, console)
    finally:
        for one in Command.all:
            one.end(0)
        if options.keep:
            console.print(f"all of it is in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    kind = "stand-in trainings" if options.quick else "tiny trainings"
    shown = Table("fault", "times", "what held", "holds", "seconds", title=f"{kind}, 2 commands")
    for row in found:
        holds = "not here" if row.wrong is None else f"no: {len(row.wrong)}" if row.wrong else "yes"
        shown.add_row(row.fault, str(row.times), row.found, holds, f"{row.seconds:.0f}")
    console.print(shown)
    wrong = [f"{row.fault}: {line}" for row in found for line in row.wrong or ()]
    for line in wrong:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if options.json:
        about = {name: getattr(options, name) for name in ("points", "seed", "postgres", "quick")}
        content = about | provenance() | {"rows": [asdict(row) for row in found]}
        write_json(options.json, content)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
