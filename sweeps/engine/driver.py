"""Runs a sweep: claims waiting points, trains each in its own process, then draws and tabulates.

Any number of commands may work in one directory at once; each is a driver of its own slots.
"""

__all__ = [
    "Outcome",
    "Ready",
    "check_sweep",
    "default_folder",
    "prepare",
    "run_sweep",
    "train_sweep",
]

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from optuna.trial import TrialState
from rich.console import Console

from dtr_lightning.errors import UserError
from dtr_lightning.rundir.run import find_runs
from sweeps.engine.child import Train, train_run
from sweeps.engine.costs import without_images
from sweeps.engine.database import Database
from sweeps.engine.folder import Folder
from sweeps.engine.grace import check_grace
from sweeps.engine.optimisers import make_pruner, make_sampler
from sweeps.engine.outputs import Ending, diverged, show
from sweeps.engine.plan import Sweep, resolve_all
from sweeps.engine.recipe import read
from sweeps.engine.session import Session
from sweeps.engine.study import Study
from sweeps.engine.view import make_view
from sweeps.engine.workers import Workers, check_numbers, this_machine


class Outcome(NamedTuple):
    """What became of a sweep: results by run name, and one line for each point that failed."""

    directory: Path
    results: dict[str, dict[str, Any]]
    failed: dict[str, str]
    stopped: bool

    def __repr__(self) -> str:
        ended = f"{len(self.results)} runs, {len(self.failed)} failed" + ", stopped" * self.stopped
        return f"<Outcome in {self.directory}: {ended}>"


class Ready(NamedTuple):
    """A sweep that was checked, and what it is to be trained with."""

    plan: Sweep
    folder: Folder
    slots: Workers
    database: Database
    number: int | None  # of workers
    per_gpu: int | None
    grace: float | None


def prepare(
    sweep: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    train: Train = train_run,
    warm: bool = True,
    **reading: Any,
) -> tuple[Sweep, Folder, Workers]:
    """Returns the resolved plan, its directory and the workers; writes nothing.

    `warm` starts the imports of the workers beside those of this process, if results are missing;
    without it nothing is to be trained, and images that the sweep has the sizes of may be missing.
    `reading` is what `recipe.read` takes.
    """
    recipe = read(sweep, **reading)
    if not warm:
        recipe = without_images(recipe)
    make_pruner(recipe)
    if recipe.space:
        make_sampler(recipe, 0)
    folder = Folder(out or default_folder(recipe.name, reading))
    workers = Workers(folder, train, recipe.smoke)
    runs = find_runs([folder.path]) if folder.path.is_dir() else []
    done = sum(run.results_file.exists() for run in runs)
    if warm and done < (recipe.trials or len(recipe.assignments)) * recipe.seeds:
        workers.warm()
    plan = resolve_all(recipe)
    if train is train_run:
        _check(plan, folder, warm)
    return plan, folder, workers


def _check(plan: Sweep, folder: Folder, here: bool) -> None:
    """Raises UserError for a point without results that cannot be built or, if `here`, trained."""
    from dtr_lightning.experiment.planning import check_parts

    if plan.config["trainer"].get("max_time"):
        raise UserError("trainer.max_time ends a single training; `--stop save` ends a sweep's")
    check_parts(
        {
            point.label: point.config
            for point in plan.known_points()
            if point.config is not None and not folder.run(point).results_file.exists()
        },
        here,
    )


def _announce(plan: Sweep) -> None:
    """Prints once what the trials will read; UserError for a folder that is not there."""
    choice = ((plan.points[0].config if plan.points else None) or plan.config).get("data")
    if choice is None:
        return
    from dtr_lightning.config.parser import takes
    from dtr_lightning.config.registry import instantiate
    from dtr_lightning.data import Data

    if takes("data", choice["class_path"], "root"):
        instantiate(Data, choice).announce()


def default_folder(name: str, reading: Mapping[str, Any]) -> Path:
    """Returns the directory of a sweep for which none is given."""
    return Path("runs") / "-".join([name, *(k for k in ("paper", "smoke") if reading.get(k))])


def run_sweep(
    sweep: str | Path | Mapping[str, Any] = "alpha_beta",
    *,
    workers: int | None = None,
    per_gpu: int | None = None,
    grace: float | None = None,
    storage: str | None = None,
    out: str | Path | None = None,
    retry_failed: bool = False,
    finish_pruned: bool = False,
    console: Console | None = None,
    train: Train = train_run,
    **reading: Any,
) -> Outcome:
    """Trains what is missing of a sweep, draws and tabulates.

    A sweep is a shipped name, a YAML's path or a mapping of what a YAML holds. `reading` is what
    `recipe.read` takes: seeds, trials, hours, smoke, paper, options. `grace`: seconds without sign
    of life after which others take the trials of this machine over, 300 by default. Ctrl-C stops
    it: every trial saves its state and the same call goes on. A call in a script needs the guard
    `if __name__ == "__main__":`, as trials are processes. UserError for a mistake in the sweep, a
    directory of another sweep and a database that cannot be used.
    """
    ready = check_sweep(
        sweep,
        workers=workers,
        per_gpu=per_gpu,
        grace=grace,
        storage=storage,
        out=out,
        train=train,
        **reading,
    )
    return train_sweep(ready, retry_failed, finish_pruned, console)


def check_sweep(
    sweep: str | Path | Mapping[str, Any],
    *,
    workers: int | None = None,
    per_gpu: int | None = None,
    grace: float | None = None,
    storage: str | None = None,
    out: str | Path | None = None,
    train: Train = train_run,
    **reading: Any,
) -> Ready:
    """Returns what `train_sweep` takes; trains and writes nothing. The options are `run_sweep`'s.

    UserError for what would keep the sweep from training: of several sweeps all are checked first.
    """
    check_numbers(workers, per_gpu)
    check_grace(grace)
    plan, folder, slots = prepare(sweep, out=out, train=train, **reading)
    database = Database(folder, storage)
    database.probe()
    folder.check_place()
    folder.check(plan)
    waiting = [point for point in plan.known_points() if folder.results(point) is None]
    if waiting or (plan.recipe.space and not folder.sweep_file.exists()):
        slots.divide(this_machine(), workers, len(waiting) or 1, per_gpu, plan.devices)
    return Ready(plan, folder, slots, database, workers, per_gpu, grace)


def train_sweep(
    ready: Ready,
    retry_failed: bool = False,
    finish_pruned: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Trains what is missing of a sweep that was checked, draws and tabulates: see `run_sweep`."""
    console = console or Console()
    plan, folder, slots, database, number, per_gpu, grace = ready
    folder.prepare(plan)
    database.say = lambda line: console.print(line, markup=False, soft_wrap=True)
    with folder.owner() as owner:
        study = Study(plan, folder, owner, database, grace)
        with database.guard():
            study.plan(retry_failed, finish_pruned)
            session = Session(study, slots, make_view(plan, console))
            waiting, running = study.open()
            if waiting or running:
                trials = waiting if plan.points else plan.total or sys.maxsize
                _announce(plan)
                slots.divide(this_machine(), number, trials, per_gpu, plan.devices)
                session.work()
            failed = session.failed | study.ended(TrialState.FAIL, "reason")
            pruned = study.ended(TrialState.PRUNED, "pruned_at")
            trials = study.trials()
    results = {
        name: final
        for name, point in study.points.items()
        if (final := folder.results(point)) is not None
    }
    failed |= diverged([*plan.recipe.objectives], results)
    if not session.stopped:
        show(Ending(plan, folder, study.points, results, failed, pruned, trials), console)
    return Outcome(folder.path, results, failed, session.stopped)
