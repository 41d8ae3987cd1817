"""Figures and tables of the DTR paper from run directories; nothing here trains a model."""

__all__ = ["ASKED", "FIGURES", "NAMES", "Drawn", "draw_all"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from analysis import (
    ablation,
    affinity,
    cka,
    classes,
    convergence,
    dedicated,
    film,
    gates,
    guidance,
    heatmap,
    masks,
    neighbours,
    ntg,
    overlap,
    samples,
    sizes,
    tasks,
    transfer,
)
from analysis.paper_tables import NAME as PAPER_TABLES
from analysis.paper_tables import write_paper_tables
from analysis.report import write_report
from analysis.runs import groups, mixed, read
from analysis.style import save
from analysis.tables import table, write_tables
from dtr_lightning.errors import UserError, choices
from dtr_lightning.run import find_runs

# A figure is a module with NAME, needs(runs) -> what is missing or None, draw(runs) -> Drawing.
FIGURES = (
    *(masks, overlap, dedicated, ablation, heatmap, sizes),
    *(convergence, samples, tasks, ntg, gates),
)
# These load networks or features, which takes time: drawn only where `only` names them.
ASKED = (cka, affinity, guidance, transfer, classes, neighbours, film)
ALWAYS = [figure.NAME for figure in FIGURES]
NAMES = (*(figure.NAME for figure in (*FIGURES, *ASKED)), PAPER_TABLES, "tables")


class Drawn(NamedTuple):
    """The files that were written, and (name, one line) for what could not be shown."""

    written: list[Path]
    left_out: list[tuple[str, str]]


def draw_all(
    directories: Sequence[str | Path],
    out: str | Path | None = None,
    only: Sequence[str] | None = None,
    report: bool = False,
    protocols: Mapping[str, Any] | None = None,
) -> Drawn:
    """Draws every figure and table that the runs below these directories allow.

    Figures go to DIR/figures and tables to DIR (the paper's to DIR/tables) where there is one
    directory; else, or with `out`, all go to `out` (default ./figures). With `report`, report.html
    is written beside the tables. `protocols` are those of asked figures, by name, where they are
    not the defaults. UserError for an unknown name, a directory that does not exist or has no runs,
    and an output that cannot be written.
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
    parted = groups(runs)
    apart = [group.finished for group in parted] or [[]]
    written: list[Path] = []
    left_out = [("runs", reason) for reason in (*skipped, mixed(parted)) if reason]
    for figure in (*FIGURES, *ASKED):
        if figure.NAME not in (only or ALWAYS):
            continue
        # what may not be compared is never in one figure
        shown = next((own for own in apart if not figure.needs(own)), apart[0])
        if reason := figure.needs(shown):
            left_out.append((figure.NAME, f"not drawn: {reason}"))
            continue
        own = [protocols[figure.NAME]] if protocols and figure.NAME in protocols else []
        try:
            drawing = figure.draw(shown, *own)
        except UserError as error:  # the others can still be drawn
            left_out.append((figure.NAME, f"not drawn: {error}"))
            continue
        written += save(drawing, for_figures, figure.NAME)
        if drawing.note:
            left_out.append((figure.NAME, drawing.note))
        if shown is not apart[0]:
            left_out.append((figure.NAME, f"of {parted[apart.index(shown)].label} alone"))
    if not only:
        names = ", ".join(figure.NAME for figure in ASKED)
        left_out.append((names, "drawn by --only NAME alone: they load the networks"))
    if not only or PAPER_TABLES in only:
        paths, reasons = write_paper_tables(runs, for_tables / "tables", brief=not only)
        written, left_out = [*written, *paths], [*left_out, *reasons]
    if not only or "tables" in only:
        if tabled := [*runs, *reading.pruned]:
            written += write_tables(table(tabled), for_tables)
        else:
            left_out.append(("tables", "not written: no run is finished"))
    if report:
        written.append(write_report(for_tables, for_figures, reading, left_out))
    return Drawn(written, left_out)
