"""How far a sweep goes: python benchmarks/sweep.py scale | overhead | plan | status | table

scale      trials that sleep, on SQLite and on a PostgreSQL of its own: trials/s, and what is waited
           for; each row starts from a plan that is half done
overhead   seconds from a real trial's last step to the next one's first, without the evaluation
plan       seconds until a command knows the points that wait
status     seconds of `sweep.py --status` on finished trials
table      seconds of the tables of finished runs

Workers are processes of this machine: beyond its cores they compete for these, as nodes do not.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import scale
from dtr_lightning.cli.commands import Options, command
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.run import Run, find_runs, to_json, write_json
from sweeps.engine.folder import Folder
from sweeps.engine.plan import Point, Sweep
from sweeps.engine.recipe import read
from tests.faults.postgres import Server

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "configs" / "digits.yaml"
TINY = {
    "trainer.max_steps": 20,
    "trainer.log_every_n_steps": 1,
    "evaluation.n": 32,
    "evaluation.every": 0,
    "sampler.steps": 2,
}
Rows = list[dict[str, Any]]


def recipe(points: int, folder: Path) -> Path:
    """Writes a sweep of so many points, ten betas by as many alphas as it takes; a multiple of 10.

    UserError for another number.
    """
    if points % 10:
        raise UserError(f"--points must be a multiple of 10; got {points}")
    grid = {
        "router": "DTR",
        "router.alpha": [round(1 + 0.01 * i, 2) for i in range(points // 10)],
        "router.beta": [round(0.05 + 0.09 * i, 2) for i in range(10)],
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({"config": str(DIGITS), "grid": [grid]}))
    return file


def measure_scale(options: argparse.Namespace, folder: Path) -> Rows:
    """Lets every number of workers claim, sleep and finish for some seconds."""
    sweep, rows = scale.points_of(options.points), []
    with contextlib.ExitStack() as stack:
        databases: dict[str, tuple[str | None, list[int]]] = {}
        if options.sqlite:
            databases["sqlite"] = (None, options.sqlite)
        if options.postgres:
            server = stack.enter_context(Server())
            databases["postgresql"] = (server.url(), options.postgres)
        for name, (url, workers) in databases.items():
            for sleep in options.sleep:
                for number in workers:
                    place = Folder(folder / f"{name}-{sleep}-{number}")
                    scale.finished(sweep, place, url, options.points // 2)
                    plan = scale.plan_seconds(sweep, place, url)
                    row = scale.measure(sweep, place, url, number, sleep, options.seconds)
                    rows.append(row._asdict() | {"plan": plan})
                    print(to_json(rows[-1], None), file=sys.stderr, flush=True)
    return rows


def measure_overhead(options: argparse.Namespace, folder: Path) -> Rows:
    """Runs a real sweep of tiny points with one worker; a row for each pair of neighbours."""
    place, file = folder / "out", recipe(10, folder)
    arguments = [f"--set={key}={value}" for key, value in TINY.items()]
    call = [sys.executable, ROOT / "sweep.py", file, "--out", place, "--workers", "1", *arguments]
    subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
    ended = [run for run in find_runs([place]) if run.results_file.exists()]
    ended.sort(key=lambda run: run.results_file.stat().st_mtime)
    steps = [_steps(run) for run in ended]
    rows = []
    for i in range(1, len(ended)):
        step = statistics.median(b - a for a, b in zip(steps[i], steps[i][1:], strict=False))
        done = ended[i - 1].results_file.stat().st_mtime
        starts = ended[i].config_file.stat().st_mtime
        row = {"evaluation": done - steps[i - 1][-1], "to the next run": starts - done}
        row |= {"to its first step": steps[i][0] - step - starts}
        rows.append(row | {"overhead": row["to the next run"] + row["to its first step"]})
    return rows


def _steps(run: Run) -> list[float]:
    """Returns the time at the end of each step, as TensorBoard has it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0})
    return [event.wall_time for event in events.Reload().Scalars("train/loss")]


def _repeated(options: argparse.Namespace, once: Callable[[], None]) -> Rows:
    rows = []
    for _ in range(options.repeats):
        began = time.perf_counter(), time.process_time()
        once()
        seconds = time.perf_counter() - began[0]
        rows.append({"seconds": seconds, "of the CPU": time.process_time() - began[1]})
    return rows


def measure_plan(options: argparse.Namespace, folder: Path) -> Rows:
    """Resolves every point and makes the study; imports, and what they delay, are made before."""
    from optuna.storages import RDBStorage

    from dtr_lightning.config import parser as config
    from sweeps.engine.plan import resolve_all

    RDBStorage("sqlite://").engine.dispose()
    file, places = recipe(options.points, folder), iter(range(options.repeats))

    def once() -> None:
        config._group.cache_clear()
        config._base.cache_clear()
        plan, place = resolve_all(read(file)), Folder(folder / str(next(places)))
        place.prepare(plan)
        scale.plan_seconds(plan, place, None)

    return _repeated(options, once)


def _stand_in(file: Path) -> Sweep:
    """Returns the points of a sweep without resolving them."""
    known = read(file)
    points = [
        Point(f"dtr-{i}", assignment | {"seed": 0}, scale.CONFIG)
        for i, assignment in enumerate(known.assignments)
    ]
    return Sweep(known, scale.CONFIG, tuple(points))


def measure_status(options: argparse.Namespace, folder: Path) -> Rows:
    """Asks for the status of a finished sweep, in a process of its own."""
    file, place = recipe(options.points, folder), Folder(folder / "out")
    scale.finished(_stand_in(file), place, None, options.points)
    call = [sys.executable, ROOT / "sweep.py", file, "--out", place.path, "--status"]

    def once() -> None:
        found = subprocess.run(call, check=True, capture_output=True, text=True).stdout
        if f"{options.points} done" not in " ".join(found.split()):
            raise RuntimeError(f"not the status of a finished sweep: {found}")

    return [{"seconds": row["seconds"]} for row in _repeated(options, once)]


def measure_table(options: argparse.Namespace, folder: Path) -> Rows:
    """Writes the tables of finished runs, five seeds to a setting."""
    from analysis.tables.tables import table, write_tables
    from tests.analysis.synthetic_runs import make_run

    for i in range(options.points):
        arguments = {"alpha": round(1 + 0.01 * (i // 5), 2), "beta": 0.8}
        make_run(folder / f"dtr-{i}", "DTR", arguments, seed=i % 5, steps=300)
    return _repeated(options, lambda: write_tables(table(find_runs([folder])), folder) and None)


MEASURES: dict[str, tuple[Callable[[argparse.Namespace, Path], Rows], int]] = {
    "scale": (measure_scale, 10_000),
    "overhead": (measure_overhead, 10),
    "plan": (measure_plan, 200),
    "status": (measure_status, 5000),
    "table": (measure_table, 5000),
}


def _numbers(kind: type) -> Callable[[str], list[Any]]:
    def parsed(text: str) -> list[Any]:
        try:
            values = [kind(word) for word in text.split(",") if word]
        except ValueError:
            values = [0]
        if not all(value > 0 for value in values):
            raise argparse.ArgumentTypeError(f"{text!r} is no list of positive numbers, as 1,8")
        return values

    return parsed


def parse() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = Options(__doc__)
    add, counts = parser.add_argument, _numbers(int)
    add("what", choices=list(MEASURES), help="what is measured")
    add("--points", type=int, metavar="N", help="default: what the documentation says")
    add("--repeats", type=int, default=5, metavar="N", help="of plan, status and table")
    add("--sqlite", type=counts, default=[1, 2, 4, 8], metavar="N,N", help="workers; '' for none")
    add("--postgres", type=counts, default=[1, 8, 16, 32, 64], metavar="N,N", help="likewise")
    add("--sleep", type=_numbers(float), default=[1.0, 0.05], metavar="S,S", help="of a trial")
    add("--seconds", type=float, default=30.0, metavar="S", help="of a row of scale")
    add("--json", type=Path, metavar="FILE", help="also write the numbers here")
    options = parser.parse_args()
    options.points = options.points or MEASURES[options.what][1]
    if min(options.points, options.repeats, options.seconds) < 1:
        raise UserError("--points, --repeats and --seconds must be at least 1")
    return options


def cells(rows: Rows) -> Iterator[list[str]]:
    """Yields what is shown of each row, and at the end, of plain seconds, the median."""
    for row in rows:
        yield [f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()]
    if "database" not in rows[0]:
        yield [f"median {statistics.median(row[key] for row in rows):.3g}" for key in rows[0]]


@command
def main() -> int:
    """Measures and prints the table."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        rows = MEASURES[options.what][0](options, Path(folder))
    shown = Table(*rows[0], title=f"{options.what}, {options.points} points")
    for row in cells(rows):
        shown.add_row(*row)
    Console().print(shown)
    if options.json:
        write_json(options.json, {"what": options.what, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
