"""The end of a sweep, and the look before it: table and figures, or points and an estimate."""

__all__ = ["diverged", "preview", "report"]

import logging
import math
import warnings
from typing import Any

from rich.console import Console

from sweeps.folder import Folder
from sweeps.plan import Sweep
from sweeps.workers import Workers, look


def diverged(sweep: Sweep, results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Returns {run name: one line} for the runs whose metric is no finite number."""
    lines = {}
    for name, found in results.items():
        score = found.get(sweep.metric)
        if sweep.metric not in found:
            lines[name] = f"its results have no {sweep.metric!r}; they have {', '.join(found)}"
        elif not isinstance(score, int | float) or not math.isfinite(score):
            lines[name] = f"diverged: {sweep.metric} is {score}"
    return lines


def report(
    sweep: Sweep,
    folder: Folder,
    results: dict[str, dict[str, Any]],
    failed: dict[str, str],
    console: Console,
) -> None:
    """Draws what is out of date; prints the table, what failed, and where to look."""
    # Drawing takes a second to import: a sweep that is stopped or refused does without.
    from analysis import draw_all
    from analysis.tables import console_table, table

    runs = [folder.run(point) for point in sweep.points if point.name in results]
    if runs:
        if not _up_to_date(folder, [run.results_file.stat().st_mtime for run in runs]):
            draw_all([folder.path])
        console.print(console_table(table(runs)))
    labels = {point.name: point.label for point in sweep.points}
    for name, reason in failed.items():
        console.print(f"failed: {labels[name]}: {reason}", markup=False, soft_wrap=True)
        console.print(f"        see {folder.logs / name}.log", markup=False, soft_wrap=True)
    done = f"{len(results)} of {len(sweep.points)} points done"
    console.print(f"{done}; figures and tables in {folder.path}", markup=False, soft_wrap=True)
    console.print(f"tensorboard --logdir {folder.path}", markup=False, soft_wrap=True)


def _up_to_date(folder: Folder, times: list[float]) -> bool:
    drawn = folder.table.exists() and folder.figures.is_dir() and any(folder.figures.iterdir())
    return drawn and folder.table.stat().st_mtime >= max(times)


def _networks(experts: int | list[Any]) -> int:
    return experts if isinstance(experts, int) else len(experts)


def preview(
    sweep: Sweep, folder: Folder, workers: Workers, number: int | None, console: Console
) -> None:
    """Prints the points, what is done, and the time from a measured training step."""
    states = []
    for point in sweep.points:
        run = folder.run(point)
        done = run.results is not None
        states.append("done" if done else "running" if run.in_use() else "waiting")
        console.print(f"{states[-1]:<8} {point.label}", markup=False, highlight=False)
    waiting = states.count("waiting")
    console.print(f"{states.count('done')} of {len(states)} points done, {waiting} waiting")
    if not waiting:
        return
    import torch

    from dtr_lightning.experiment import Experiment
    from dtr_lightning.fit import seconds_per_step

    workers.divide(look(), number, waiting)
    torch.set_num_threads(workers.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        seconds = seconds_per_step(sweep.config)
    experiment = Experiment(sweep.config)
    evaluated = experiment.work() / experiment.training_work()
    steps = sum(
        point.config["trainer"]["max_steps"] * _networks(point.config.get("experts", 1))
        for point, state in zip(sweep.points, states, strict=True)
        if state == "waiting"
    )
    minutes = steps * seconds * evaluated / workers.number / 60
    console.print(
        f"about {minutes:.1f} min with {workers.number} workers of {workers.threads} threads: "
        f"{1000 * seconds:.1f} ms a step, measured, and {evaluated - 1:.0%} more for evaluations",
        soft_wrap=True,
    )
