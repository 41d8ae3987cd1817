"""Figures and tables of the DTR paper from run directories; nothing here trains a model."""

__all__ = ["NAMES", "Drawn", "draw_all"]

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from analysis import (
    ablation,
    convergence,
    dedicated,
    gates,
    heatmap,
    masks,
    ntg,
    overlap,
    samples,
    sizes,
    tasks,
)
from analysis.report import write_report
from analysis.runs import read
from analysis.style import save
from analysis.tables import table, write_tables
from dtr_lightning.errors import UserError, choices
from dtr_lightning.run import find_runs

# A figure is a module with NAME, needs(runs) -> what is missing or None, draw(runs) -> Drawing.
FIGURES = (
    *(masks, overlap, dedicated, ablation, heatmap, sizes),
    *(convergence, samples, tasks, ntg, gates),
)
NAMES = (*(figure.NAME for figure in FIGURES), "tables")


class Drawn(NamedTuple):
    """The files that were written, and (name, one line) for what could not be shown."""

    written: list[Path]
    left_out: list[tuple[str, str]]


def draw_all(
    directories: Sequence[str | Path],
    out: str | Path | None = None,
    only: Sequence[str] | None = None,
    report: bool = False,
) -> Drawn:
    """Draws every figure and table that the runs below these directories allow.

    Figures go to DIR/figures and tables to DIR where there is one directory; else, or with `out`,
    all go to `out` (default ./figures). With `report`, report.html is written beside the tables.
    UserError for an unknown name, a directory that does not exist or has no runs, and an output
    that cannot be written.
    """
    for name in only or ():
        if name not in NAMES:
            raise choices("figure", name, NAMES)
    found = find_runs(directories)
    if not found:
        raise UserError(f"no runs in {', '.join(map(str, directories))}")
    for_tables = Path(out or (directories[0] if len(directories) == 1 else "figures"))
    for_figures = for_tables if out or len(directories) > 1 else for_tables / "figures"

    reading = read(found, records=set(only or NAMES) != {"tables"})
    runs, skipped = reading
    written: list[Path] = []
    left_out = [("runs", reason) for reason in skipped]
    for figure in FIGURES:
        if only and figure.NAME not in only:
            continue
        if reason := figure.needs(runs):
            left_out.append((figure.NAME, f"not drawn: {reason}"))
            continue
        drawing = figure.draw(runs)
        written += save(drawing, for_figures, figure.NAME)
        if drawing.note:
            left_out.append((figure.NAME, drawing.note))
    if not only or "tables" in only:
        if tabled := [*runs, *reading.pruned]:
            written += write_tables(table(tabled), for_tables)
        else:
            left_out.append(("tables", "not written: no run is finished"))
    if report:
        written.append(write_report(for_tables, for_figures, reading, left_out))
    return Drawn(written, left_out)
