"""Trains a grid of settings, or searches one: `python sweep.py` is the paper's alpha x beta.

    python sweep.py                          on the digits that scikit-learn ships
    python sweep.py --smoke                  the same path in under a minute
    python sweep.py my_sweep.yaml --seeds 3 --workers 4 --out runs/mine
    python sweep.py search --status          from another terminal or node
    python sweep.py paper/table2 --dry-run   the published scale: points, numbers, GPU-hours, disk

The same command again goes on where it stopped, and trains nothing when all is done.
"""

import argparse
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

from dtr_lightning.cli.commands import INTERRUPTED, Options, command, loading, whole
from dtr_lightning.errors import UserError

if TYPE_CHECKING:
    from sweeps.engine.driver import Outcome

SMOKE = "a few steps a point; these numbers mean nothing"
READING = ("seeds", "trials", "hours", "smoke", "paper")


def parse() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = Options(__doc__)
    add = parser.add_argument
    add(
        "sweep",
        nargs="?",
        default="alpha_beta",
        help="a name in sweeps/, a folder there, or a YAML",
    )
    add("--workers", type=whole, metavar="N", help="trainings at once (default: GPUs, else cores)")
    add("--per-gpu", type=whole, metavar="N", help="trainings at once on each GPU")
    add("--seeds", type=whole, metavar="N", help="train every point with the seeds 0 .. N - 1")
    add("--trials", type=whole, metavar="N", help="number of settings that a search tries")
    add(
        "--hours",
        type=float,
        metavar="H",
        help="hours of training of a search, in all workers",
    )
    add("--smoke", action="store_true", help="train a few steps per point")
    add(
        "--paper",
        action="store_true",
        help="train the published sizes of a sweep that has smaller ones",
    )
    add(
        "--set",
        metavar="OPTION=VALUE",
        action="append",
        default=[],
        help="set an option of train.py for every point, such as data.root=images; repeatable",
    )
    add("--dry-run", action="store_true", help="only print the points and their cost")
    add("--retry-failed", action="store_true", help="train failed points again")
    add("--finish-pruned", action="store_true", help="train pruned points to their end")
    add(
        "--status",
        action="store_true",
        help="show how far a sweep is, wherever it runs",
    )
    add(
        "--stop",
        nargs="?",
        const="finish",
        choices=("finish", "save"),
        help="ask a running sweep to stop when its trials end (finish) or have saved (save)",
    )
    add(
        "--storage",
        metavar="URL",
        default=os.environ.get("SWEEP_STORAGE"),
        help="Optuna's database (default: $SWEEP_STORAGE, else study.db in --out)",
    )
    add(
        "--grace",
        type=float,
        metavar="SECONDS",
        help="without a sign of life from this machine, others take its trials over after so long "
        "(default: 300; 20 to 604800)",
    )
    add("--out", metavar="DIR", help="default: runs/NAME, NAME-paper or NAME-smoke")
    return parser.parse_args()


def show(options: argparse.Namespace, names: list[str], reading: dict[str, Any]) -> None:
    """Prints the points of sweeps and what they take, and of several what they take together."""
    from rich.console import Console

    from sweeps.engine.costs import Need
    from sweeps.engine.driver import prepare
    from sweeps.engine.preview import preview

    console, needs = Console(), []
    for name in names:
        if len(names) > 1:
            print(f"\n{name}")
        parts = prepare(name, out=below(options.out, names, name), warm=False, **reading)
        if need := preview(*parts, options.workers, console, options.per_gpu):
            needs.append(need)
    if len(needs) > 1:
        total = Need.total(needs)
        print(
            f"\nin all: {total.trainings} trainings, about {total.hours:,.0f} GPU-hours and "
            f"{total.checkpoints / 1e9:,.0f} GB of checkpoints"
        )


def below(out: str | None, names: list[str], name: str) -> str | None:
    """Returns the directory of one of several sweeps: its name below --out."""
    return os.path.join(out, name) if out and len(names) > 1 else out


def look(options: argparse.Namespace, names: list[str], reading: dict[str, Any]) -> None:
    """Shows how far sweeps are, or asks them to stop; UserError where none of them has begun."""
    from rich.console import Console

    from sweeps.engine.folder import NotBegun
    from sweeps.engine.status import status, stop

    waiting = []
    for name in names:
        out = below(options.out, names, name)
        try:
            if options.stop:
                stop(name, out, options.stop, Console(), **reading)
            else:
                status(name, out, options.storage, Console(), **reading)
        except NotBegun as error:
            if len(names) == 1:
                raise
            waiting.append(str(error))
    if len(waiting) == len(names):
        raise UserError(
            f"none of the {len(names)} sweeps in {options.sweep} has begun: {waiting[0]}"
        )
    if waiting:
        print(f"not begun: {len(waiting)} of {len(names)} sweeps in {options.sweep}")


def train(
    options: argparse.Namespace, names: list[str], reading: dict[str, Any]
) -> "list[Outcome]":
    """Trains sweeps, one after the other, once all of them are checked; returns their outcomes."""
    from sweeps.engine.driver import check_sweep, train_sweep

    ready = []
    for name in names:
        try:
            ready.append(
                check_sweep(
                    name,
                    workers=options.workers,
                    per_gpu=options.per_gpu,
                    grace=options.grace,
                    storage=options.storage,
                    out=below(options.out, names, name),
                    **reading,
                )
            )
        except UserError as error:
            raise UserError(f"{name}: {error}" if len(names) > 1 else str(error)) from error
    outcomes: list[Outcome] = []
    for name, each in zip(names, ready, strict=True):
        if len(names) > 1:
            print(f"\n{name}")
        outcomes.append(train_sweep(each, options.retry_failed, options.finish_pruned))
        if outcomes[-1].stopped:
            break
    return outcomes


@command
def main() -> int:
    """Runs the command and returns its exit code: 0, 1 (a point failed), 2 (a mistake) or 130."""
    same = f"`{shlex.join(['python', *sys.argv])}` goes on"
    try:
        options = parse()
        loading()
        from sweeps.engine.recipe import members

        reading = {name: getattr(options, name) for name in READING} | {"options": options.set}
        names = members(options.sweep)
        if options.status or options.stop:
            look(options, names, reading)
            return 0
        if options.smoke:
            print(f"--smoke: {SMOKE}")
        if options.dry_run:
            show(options, names, reading)
            return 0
        outcomes = train(options, names, reading)
    except KeyboardInterrupt:
        print(f"\nstopped; {same}", file=sys.stderr)
        return INTERRUPTED
    if options.smoke:
        print(f"--smoke: {SMOKE}")
    if outcomes[-1].stopped:
        print(f"stopped, {len(outcomes[-1].results)} points done; {same}")
        return INTERRUPTED
    return 1 if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
