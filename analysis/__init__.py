"""Figures and tables of the DTR paper from run directories; nothing here trains a model."""

__all__ = ["ASKED", "FIGURES", "NAMES", "Drawn", "draw_all"]

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from dtr_lightning.commands import loading

if sys.argv[0] == "-m":  # `python -m analysis` imports this first, which takes seconds
    loading()

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
from analysis.attempt import attempt
from analysis.paper_tables import NAME as PAPER_TABLES
from analysis.paper_tables import write_paper_tables
from analysis.report import write_report
from analysis.runs import Finished, groups, mixed, read
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
    not the defaults. A figure that fails ends neither the others nor the report. UserError for an
    unknown name, a directory that does not exist or has no runs, and an output that cannot be
    written.
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
        shown = next((own for own in apart if _drawable(figure, own)), apart[0])
        own = [protocols[figure.NAME]] if protocols and figure.NAME in protocols else []
        paths, note = _draw(figure, shown, own, for_figures)
        written += paths
        if note:
            left_out.append((figure.NAME, note))
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


def _drawable(figure: ModuleType, runs: Sequence[Finished]) -> bool:
    """Returns whether a figure needs nothing more; one that fails is to say so when it is drawn."""
    try:
        return not figure.needs(runs)
    except Exception:
        return True


def _draw(
    figure: ModuleType, runs: Sequence[Finished], protocol: Sequence[Any], directory: Path
) -> tuple[list[Path], str]:
    """Returns the files of a figure, and one line on what it leaves out or why it is not there.

    UserError if nothing can be written there.
    """
    image = directory / f"{figure.NAME}.png"
    older = f"; the {image.name} there is older" if image.exists() else ""
    paths, note = [], ""

    def work() -> None:
        nonlocal note
        try:
            reason = figure.needs(runs)
            drawing = None if reason else figure.draw(runs, *protocol)
        except UserError as error:
            reason = str(error)
        if reason:
            note = f"not drawn: {reason}{older}"
        else:
            paths.extend(save(drawing, directory, figure.NAME))
            note = drawing.note

    failed = attempt(figure.NAME, directory, work)
    return paths, f"{failed}{older}" if failed else note
