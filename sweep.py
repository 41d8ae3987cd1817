"""Trains a grid of settings and draws the figures: `python sweep.py` is the paper's alpha x beta.

    python sweep.py                          on the digits that scikit-learn ships
    python sweep.py --smoke                  the same path in under a minute
    python sweep.py my_sweep.yaml --seeds 3 --workers 4 --out runs/mine

The same command again goes on where it stopped, and trains nothing when all is done.
"""

import argparse
import shlex
import sys

from dtr_lightning.commands import Options
from dtr_lightning.errors import UserError


def parse() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = Options(__doc__)
    parser.add_argument(
        "sweep", nargs="?", default="alpha_beta", help="a name in sweeps/ or a YAML's path"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="trainings at once (default: GPUs, else CPU cores)"
    )
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="train every point with the seeds 0 .. N - 1"
    )
    parser.add_argument("--smoke", action="store_true", help="a few steps per point")
    parser.add_argument(
        "--paper", action="store_true", help="the published sizes, where a sweep has smaller ones"
    )
    parser.add_argument(
        "--set",
        metavar="OPTION=VALUE",
        action="append",
        default=[],
        help="an option of train.py for every point, such as data.root=images; repeatable",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print points and an estimate of the time only"
    )
    parser.add_argument(
        "--storage", metavar="URL", help="Optuna's database (default: study.db in --out)"
    )
    parser.add_argument("--out", metavar="DIR", help="default: runs/NAME, NAME-paper or NAME-smoke")
    return parser.parse_args()


def main() -> int:
    """Runs the command and returns its exit code: 0, 1 (a point failed), 2 (a mistake) or 130."""
    command = f"`{shlex.join(['python', *sys.argv])}` goes on"
    try:
        options = parse()
        from rich.console import Console

        from sweeps.driver import prepare, run_sweep
        from sweeps.report import preview

        same = {name: getattr(options, name) for name in ("seeds", "smoke", "paper", "out")}
        same["options"] = options.set
        if options.dry_run:
            sweep, folder, workers = prepare(options.sweep, **same, warm=False)
            preview(sweep, folder, workers, options.workers, Console())
            return 0
        outcome = run_sweep(options.sweep, workers=options.workers, storage=options.storage, **same)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; {command}", file=sys.stderr)
        return 130
    if outcome.stopped:
        print(f"stopped, {len(outcome.results)} points done; {command}")
        return 130
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
