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
from typing import Any

from dtr_lightning.cli.commands import Options, loading, whole
from dtr_lightning.errors import UserError

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


def main() -> int:
    """Runs the command and returns its exit code: 0, 1 (a point failed), 2 (a mistake) or 130."""
    command = f"`{shlex.join(['python', *sys.argv])}` goes on"
    try:
        options = parse()
        loading()
        from rich.console import Console

        from sweeps.engine.recipe import members

        reading = {name: getattr(options, name) for name in READING} | {"options": options.set}
        if options.status or options.stop:
            from sweeps.engine.status import status, stop

            if options.stop:
                stop(options.sweep, options.out, options.stop, Console(), **reading)
            else:
                status(options.sweep, options.out, options.storage, Console(), **reading)
            return 0
        if options.smoke:
            print(f"--smoke: {SMOKE}")
        names = members(options.sweep)
        if options.dry_run:
            show(options, names, reading)
            return 0
        from sweeps.engine.driver import run_sweep

        outcomes = []
        for name in names:
            if len(names) > 1:
                print(f"\n{name}")
            outcomes.append(
                run_sweep(
                    name,
                    out=below(options.out, names, name),
                    workers=options.workers,
                    per_gpu=options.per_gpu,
                    grace=options.grace,
                    storage=options.storage,
                    retry_failed=options.retry_failed,
                    finish_pruned=options.finish_pruned,
                    **reading,
                )
            )
            if outcomes[-1].stopped:
                break
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; {command}", file=sys.stderr)
        return 130
    if options.smoke:
        print(f"--smoke: {SMOKE}")
    if outcomes[-1].stopped:
        print(f"stopped, {len(outcomes[-1].results)} points done; {command}")
        return 130
    return 1 if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
