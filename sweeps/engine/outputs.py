"""The end of a sweep: table, figures, and what became of the points without results."""

__all__ = ["Ending", "diverged", "report"]

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial
from rich.console import Console

from dtr_lightning.errors import Diverged
from sweeps.engine.folder import Folder
from sweeps.engine.plan import Point, Sweep


class Ending(NamedTuple):
    """What became of the points of a sweep, by the names of their runs."""

    sweep: Sweep
    folder: Folder
    points: dict[str, Point]
    results: dict[str, dict[str, Any]]
    failed: dict[str, str]  # one line of reason
    pruned: dict[str, int]  # at a step
    trials: Sequence[FrozenTrial] = ()


def diverged(metrics: Sequence[str], results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Returns {run name: one line} for the runs of which a metric is no finite number."""
    lines = {}
    for name, found in results.items():
        for metric in metrics:
            score = found.get(metric)
            how = Diverged.of(found)
            if "diverged_at" in found:
                lines[name] = f"diverged: {how}"
            elif score is None and not how:
                lines[name] = f"its protocol does not measure {metric!r}"
            elif not isinstance(score, int | float) or not math.isfinite(score):
                lines[name] = f"diverged: {metric} is {'nan' if score is None else score}"
    return lines


def report(ending: Ending, console: Console) -> None:
    """Draws what is out of date; prints the table, what failed, and where to look."""
    # Drawing takes a second to import: a sweep that is stopped or refused does without.
    from analysis import draw_all
    from analysis.tables.tables import console_table, table
    from sweeps.engine.plots import draw

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    sweep, folder, points, results, failed, pruned, trials = ending
    runs = [folder.run(points[name]) for name in results]
    ended = [run.results_file for run in runs]
    for name in pruned:
        runs.append(folder.run(points[name]))
        ended.append(runs[-1].meta_file)
    if runs:
        if not _up_to_date(folder, [file.stat().st_mtime for file in ended]):
            draw_all([folder.path])
            if sweep.recipe.space:  # a search: a grid's points are its axes' own figures
                draw(trials, sweep.recipe.objectives, folder.figures)
        console.print(console_table(table(runs)))
    for name, reason in failed.items():
        say(f"failed: {points[name].label}: {reason}")
        say(f"        see {folder.logs / name}.log")
    if failed.keys() - results.keys():
        say("--retry-failed trains what failed again")
    if pruned:
        say("--finish-pruned trains what was pruned to its end")
    done = f"{len(results)} of {sweep.total or len(points)} points done"
    done += f", {len(pruned)} pruned" if pruned else ""
    say(f"{done}; figures and tables in {folder.path}")
    say(f"tensorboard --logdir {folder.path}")


def _up_to_date(folder: Folder, times: list[float]) -> bool:
    drawn = folder.table.exists() and folder.figures.is_dir() and any(folder.figures.iterdir())
    return drawn and folder.table.stat().st_mtime >= max(times)
