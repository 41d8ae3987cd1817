"""Draws every figure and table that run directories allow."""

__all__ = ["Drawn", "draw_all"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from analysis.catalog import FIGURES, PROBES, check_names, figure
from analysis.drawing.attempt import attempt
from analysis.drawing.style import save
from analysis.read.runs import Finished, groups, mixed, read
from analysis.report.page import write_report
from analysis.tables.paper_tables import write_paper_tables
from analysis.tables.tables import table, write_tables
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.run import find_runs


class Drawn(NamedTuple):
    """The files that were written, and (name, one line) for what could not be shown."""

    written: list[Path]
    left_out: list[tuple[str, str]]


def draw_all(
    directories: Sequence[str | Path],
    out: str | Path | None = None,
    only: Sequence[str] | None = None,
    report: bool = False,
    configs: Mapping[str, Any] | None = None,
) -> Drawn:
    """Draws every figure and table that the runs below these directories allow.

    Figures go to DIR/figures and tables to DIR (the paper's to DIR/tables) where there is one
    directory; else, or with `out`, all go to `out` (default ./figures). With `report`, report.html
    is written beside the tables. `configs` are those of probes, by name, where they are not the
    defaults. A figure that fails ends neither the others nor the report. UserError for an unknown
    name, a directory that does not exist or has no runs, and an output that cannot be written.
    """
    check_names(only or ())
    paths = find_runs(directories)
    if not paths:
        raise UserError(f"no runs in {', '.join(map(str, directories))}")
    for_tables = Path(out or (directories[0] if len(directories) == 1 else "figures"))
    for_figures = for_tables if out or len(directories) > 1 else for_tables / "figures"

    names = tuple(dict.fromkeys(only)) if only else FIGURES
    reading = read(paths, records=set(names) != {"tables"})
    runs, skipped = reading
    parted = groups(runs)
    comparable = [group.finished for group in parted] or [[]]
    written: list[Path] = []
    left_out = [("runs", reason) for reason in (*skipped, mixed(parted)) if reason]
    for name in names:
        if name in ("paper_tables", "tables"):
            continue
        module = figure(name)
        # one figure never shows runs that may not be compared
        shown = next((runs for runs in comparable if _drawable(module, runs)), comparable[0])
        options = [configs[name]] if configs and name in configs else []
        paths, note = _draw(name, module, shown, options, for_figures)
        written += paths
        if note:
            left_out.append((name, note))
        if shown is not comparable[0]:
            left_out.append((name, f"of {parted[comparable.index(shown)].label} alone"))
    if not only:
        left_out.append((", ".join(PROBES), "drawn by --only NAME alone: they load the networks"))
    if not only or "paper_tables" in only:
        paths, reasons = write_paper_tables(runs, for_tables / "tables", brief=not only)
        written, left_out = [*written, *paths], [*left_out, *reasons]
    if not only or "tables" in only:
        if tabled := [*runs, *reading.pruned]:
            written += write_tables(table(tabled), for_tables)
        else:
            left_out.append(("tables", "not written: no run is finished"))
    if report:
        written.append(write_report(directories, for_tables, for_figures, reading, left_out))
    return Drawn(written, left_out)


def _drawable(module: ModuleType, runs: Sequence[Finished]) -> bool:
    """Returns whether a figure needs nothing more; where that fails, drawing it says why."""
    try:
        return not module.needs(runs)
    except Exception:
        return True


def _draw(
    name: str,
    module: ModuleType,
    runs: Sequence[Finished],
    options: Sequence[Any],
    directory: Path,
) -> tuple[list[Path], str]:
    """Returns the files of a figure, and one line on what it leaves out or why it is not drawn.

    UserError if nothing can be written there.
    """
    stem = name.rpartition(".")[2]
    image = directory / f"{stem}.png"
    older = f"; the {image.name} there is older" if image.exists() else ""
    paths, note = [], ""

    def work() -> None:
        nonlocal note
        try:
            if reason := module.needs(runs):
                raise UserError(reason)
            drawing = module.draw(runs, *options)
        except UserError as error:
            note = f"not drawn: {error}{older}"
        else:
            paths.extend(save(drawing, directory, stem))
            note = drawing.note

    failed = attempt(stem, directory, work)
    return paths, f"{failed}{older}" if failed else note
