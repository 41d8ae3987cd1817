"""The end of a sweep: its table, its figures, and its points without results."""

__all__ = ["Ending", "diverged", "show"]

from collections.abc import Sequence
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial
from rich.console import Console

from dtr_lightning.errors import Diverged
from sweeps.engine.folder import Folder
from sweeps.engine.plan import Point, Sweep
from sweeps.engine.published import beside
from sweeps.engine.values import finite


class Ending(NamedTuple):
    """What became of the points of a sweep, by run name."""

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
    for name, final in results.items():
        for metric in metrics:
            score = final.get(metric)
            how = Diverged.of(final)
            if "diverged_at" in final:
                lines[name] = f"diverged: {how}"
            elif score is None and not how:
                lines[name] = f"its protocol does not measure {metric!r}"
            elif not finite(score):
                lines[name] = f"diverged: {metric} is {'nan' if score is None else score}"
    return lines


def show(ending: Ending, console: Console) -> None:
    """Draws what is out of date; prints the table, failed points and where the files are."""
    # drawing takes a second to import: a sweep that is stopped or refused does without
    from analysis import draw_all
    from analysis.tables.tables import console_table, table
    from sweeps.engine.plots import draw

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    sweep, folder, points, results, failed, pruned, trials = ending
    done, ended_early = (
        [folder.run(points[name]) for name in names] for names in (results, pruned)
    )
    if runs := [*done, *ended_early]:
        ends = [run.results_file for run in done] + [run.meta_file for run in ended_early]
        if not _up_to_date(folder, max(file.stat().st_mtime for file in ends)):
            draw_all([folder.path])
            if sweep.recipe.space:  # a search: a grid's points are its axes' own figures
                draw(trials, sweep.recipe.objectives, folder.figures)
        console.print(console_table(table(runs)))
    if (numbers := sweep.recipe.published) and results and not sweep.recipe.smoke:
        measured: dict[str, list[Any]] = {}
        for name in results:
            scores = measured.setdefault(points[name].setting_label, [])
            scores.append(results[name].get(sweep.metric))
        console.print(beside(numbers, sweep.metric, measured))
    for name, reason in failed.items():
        say(f"failed: {points[name].label}: {reason}")
        say(f"        see {folder.logs / name}.log")
    if failed.keys() - results.keys():
        say("--retry-failed trains what failed again")
    if pruned:
        say("--finish-pruned trains what was pruned to its end")
    total = f"{len(results)} of {sweep.total or len(points)} points done"
    total += f", {len(pruned)} pruned" if pruned else ""
    say(f"{total}; figures and tables in {folder.path}")
    say(f"tensorboard --logdir {folder.path}")


def _up_to_date(folder: Folder, since: float) -> bool:
    drawn = folder.table.exists() and folder.figures.is_dir() and any(folder.figures.iterdir())
    return drawn and folder.table.stat().st_mtime >= since
