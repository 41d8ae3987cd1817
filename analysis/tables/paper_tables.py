"""Tables 1 to 8 of the DTR paper and Switch-DiT's from runs, the published numbers beside ours.

The published numbers have columns of their own and say at which scale they were measured; a column
names the run directories that each of our numbers comes from.
"""

__all__ = ["NAME", "write_paper_tables"]

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.read.runs import Finished
from analysis.read.statistics import lowest, reach
from analysis.tables.paper_rows import (
    SHARES,
    Entry,
    Selection,
    needs,
    paper_rows,
    published,
    select,
)
from analysis.tables.text import (
    DAGGER,
    Text,
    decimals,
    difference,
    footnotes,
    interval,
    p_value,
    published_cells,
    write_texts,
)

NAME = "paper_tables"
FORMATS = dict(zip(SHARES, ("{:.1%}", "{:.3f}", "{:.3f}", "{:.4f}"), strict=True))
APART = (
    "The published numbers are comparable in value with ours only where images, network, steps and "
    "protocol are the same."
)


def _score(row: Any, digits: int) -> str:
    if row.seeds > 0:
        diverged = f" ({row.diverged:.0f} diverged)" if row.diverged else ""
        return interval(row.score, row.high, digits) + diverged
    return "diverged" if row.diverged > 0 else "-"


def _text(entry: Entry, frame: pd.DataFrame, runs: Sequence[Finished]) -> Text:
    """Returns the table as text, without empty columns of ours."""
    rows, digits = list(frame.itertuples()), decimals(frame.score)
    marks, ours = footnotes(frame.notes)
    labels = [row.row + f" {DAGGER}" * bool(row.note) for row in rows]
    marked = zip(labels, marks, strict=True)
    columns = {"row": [f"{label} {mark}".strip() for label, mark in marked]}
    columns |= {"score": [_score(row, digits) for row in rows]}
    columns |= {"n seeds": ["-" if math.isnan(row.seeds) else f"{row.seeds:.0f}" for row in rows]}
    if (frame.pairs > 0).any():
        columns["Δ"] = [difference(row, digits) for row in rows]
    if frame.p_holm.notna().any():
        columns["p"] = [p_value(p) for p in frame.p_holm]
    for name, form in FORMATS.items():
        if frame[name].notna().any():
            columns[name] = ["-" if math.isnan(x) else form.format(x) for x in frame[name]]
    for heading in frame.columns[frame.columns.str.startswith("published ")]:
        columns[heading] = published_cells(frame[heading])
    columns["run"] = [run or "-" for run in frame.run]
    of: dict[str, list[str]] = {}
    for row in rows:
        of.setdefault(row.note, []).append(row.row)
    notes = [f"{DAGGER} {'; '.join(of[note])}: {note}." for note in of if note] + ours
    return Text(columns, ["row"], _caption(entry, frame, runs), notes, ["run"], best=_best(frame))


def _best(frame: pd.DataFrame) -> dict[str, list[int]]:
    """Returns the rows of our best numbers; of the score, all whose interval overlaps the best."""
    sound = frame[frame.score.notna() & (frame.meaningless != 1)]
    best = {"score": lowest(frame)}
    for name in SHARES if len(sound) > 1 else ():
        top = sound[name].min() if name == "loss" else sound[name].max()
        tied = sound.index[sound[name] == top].tolist()
        best[name] = tied if len(tied) < len(sound) else []
    return best


def _about(runs: Sequence[Finished]) -> str:
    """Returns network, data and steps of our runs, where all agree."""
    parts = []
    for form, key in (
        (" of {}", "model"),
        (" on {}", "data"),
        (", {:,} steps", "trainer.max_steps"),
    ):
        values = {run.flat.get(key) for run in runs}
        if len(values) == 1 and None not in values:
            value = values.pop()
            parts.append(form.format(value.rsplit(".")[-1] if isinstance(value, str) else value))
    return "".join(parts)


def _caption(entry: Entry, frame: pd.DataFrame, runs: Sequence[Finished]) -> str:
    score, n = runs[0].protocol
    parts = [f"Score (ours): {score} (N = {n:,}, lower is better)" + _about(runs)]
    if (frame.seeds > 1).any():
        parts.append("mean ± half-width of the 95 % t interval over n seeds")
    if (frame.pairs > 0).any():
        other = entry["rows"][0]["label"] if "baseline" in entry else "no routing, all else equal"
        several = bool((frame.pairs > 1).any())
        parts.append(f"Δ: {'mean paired ' * several}difference to {other}" + ", likewise" * several)
        if several:
            parts += filter(None, [reach(frame[frame.pairs.notna()])])
    theirs = f" Published: {entry['scale']}. {APART}"
    return f"{entry['number']}. {entry['title']}. {'; '.join(parts)}.{theirs}"


def _left_out(entry: Entry, selection: Selection) -> str:
    more = f" and {len(selection.others) - 1} more" if len(selection.others) > 1 else ""
    but = " and ".join(entry["vary"])
    return f"left out {selection.others[0].path.name}{more}: they differ from the rest beyond {but}"


def write_paper_tables(
    runs: Sequence[Finished], directory: str | Path, brief: bool = False
) -> tuple[list[Path], list[tuple[str, str]]]:
    """Writes NAME.csv, .md and .tex of each table of which two rows have finished runs.

    Returns the paths, and (table, one line) for what is left out and why; `brief`: one line for all
    tables that are not drawn. UserError where the directory cannot be written to.
    """
    texts: dict[str, str] = {}
    notes, lacking = [], []
    for name, entry in published().items():
        if "match" not in entry:
            lacking.append((name, "not drawn: it needs no runs; made by python benchmarks/cost.py"))
            continue
        selection = select(entry, runs)
        if reason := needs(entry, selection):
            lacking.append((name, f"not drawn: {reason}"))
            continue
        if selection.others:
            notes.append((name, _left_out(entry, selection)))
        frame = paper_rows(entry, selection)
        text = _text(entry, frame, selection.runs)
        texts |= {f"{name}.csv": frame.to_csv(index=False)}
        texts |= {f"{name}.md": text.markdown(), f"{name}.tex": text.latex()}
    if brief:
        names = ", ".join(name for name, _ in lacking)
        lacking = [(NAME, f"not drawn: {names}; --only {NAME} says what each needs")]
    return write_texts(directory, texts) if texts else [], notes + lacking
