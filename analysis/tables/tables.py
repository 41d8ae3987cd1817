"""The tables of all finished runs: CSV, Markdown, LaTeX (booktabs) and the terminal.

Runs of other data, another score or protocol, and of a smoke have a table of their own.
"""

__all__ = [
    "below",
    "caption",
    "cells",
    "console_table",
    "latex",
    "markdown",
    "over_seeds",
    "parts",
    "table",
    "write_tables",
]

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text as Line

from analysis.read.runs import Finished, Recorded, groups, read, relative_paths
from analysis.read.settings import DISPLAY_NAMES, settings
from analysis.read.statistics import (
    MEASURED,
    PROTOCOL,
    SETTING,
    joined,
    lowest,
    over_seeds,
    ranked,
    reach,
)
from analysis.tables.text import (
    Text,
    decimals,
    difference,
    footnotes,
    interval,
    p_value,
    write_texts,
)
from dtr_lightning.experiment.notes import MEANINGLESS, notes_of
from dtr_lightning.rundir.run import Run

COLUMNS = [*SETTING, "seed", *MEASURED, *PROTOCOL, "status", "ended_at", "pruned_score", "run"]
Format = Callable[[float], str]
FORMATS: dict[str, Format] = {
    "alpha": "{:g}".format,
    "beta": "{:g}".format,
    "accuracy": "{:.1%}".format,
    "copies": "{:.1%}".format,
    "loss": "{:.4f}".format,
    "overlap": "{:.1%}".format,
    "seconds": "{:.0f}".format,
}
NUMBERS = ["alpha", "beta", "Δ", "p", *MEASURED]
# what a narrow table drops, in turn
NARROWED = ["overlap", "seconds", "floor", "copies", "loss", "accuracy"]
BETTER = {"accuracy": "idxmax", "loss": "idxmin"}  # the best of the other columns


def table(runs: Iterable[Run]) -> pd.DataFrame:
    """Returns a row per run: the best score first, then diverged runs (score nan), then pruned.

    accuracy, copies and overlap (channels that two tasks both read) are shares in 0..1, seconds
    those of the whole run; `run` is its path from the directory that all have in common; `other`
    has the options in which runs differ beyond router, loss weight and seed; `setting` is equal for
    runs that differ in their seed alone, `baseline` the setting that differs from it in having no
    routing. `group` is that of runs that may be compared; its rows follow each other. `notes` are
    the sentences of `notes_of`, `meaningless` where one of them forbids to compare scores.
    `ended_at` is the step where a run diverged or was pruned. Unfinished and damaged runs have no
    row.
    """
    reading = read(runs, records=False)
    rows, places = [], relative_paths([*reading.finished, *reading.pruned])
    for group in groups([*reading.finished, *reading.pruned]):
        every = settings(group.runs)
        baselines = {
            setting.runs[0].hash_without("seed", "router"): setting.runs[0].hash_without("seed")
            for setting in every
            if setting.router == "NoRouting"
        }
        for setting in every:
            name = setting.runs[0].hash_without("seed")
            baseline = baselines.get(setting.runs[0].hash_without("seed", "router"), "")
            row = {key: getattr(setting, key) for key in SETTING}
            row |= {"data": group.data, "group": group.label, "setting": name}
            row["baseline"] = baseline if setting.router != "NoRouting" else ""
            rows += [row | _measured(run) | {"run": places[run.path]} for run in setting.runs]
    return ranked(rows, COLUMNS)


def _measured(run: Recorded) -> dict[str, Any]:
    row: dict[str, Any] = {"seed": run.seed}
    if isinstance(run, Finished):
        row |= {name: run.number(name) for name in [*MEASURED, "floor_n"]}
        row |= {"score_name": run.protocol[0], "n": run.protocol[1]}
        notes = notes_of(run.results | {"smoke": run.smoke})
        row |= {"notes": joined(notes.values()), "meaningless": not MEANINGLESS.isdisjoint(notes)}
        status = "done" if math.isfinite(run.score) else "diverged"
        return row | {"status": status, "ended_at": run.number("diverged_at")}
    ended = {name: run.meta.get(f"pruned_{name}") for name in ("at", "score")}
    at, score = (math.nan if value is None else float(value) for value in ended.values())
    row |= {"score_name": "", "n": 0, "status": "pruned", "notes": "", "meaningless": False}
    return row | {"ended_at": at, "pruned_score": score}


def parts(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields the label of each group and its table over seeds; one group alone needs no label."""
    means = over_seeds(frame)
    several = means.group.nunique() > 1
    for label, part in means.groupby("group", sort=False):
        yield label if several else "", part.reset_index(drop=True)


def _score(row: Any, digits: int) -> str:
    at = f" at {row.ended_at}" if row.ended_at else ""
    if row.status == "pruned":
        score = f": {row.pruned_score:.{digits}f}" if math.isfinite(row.pruned_score) else ""
        return f"pruned{at}{score}"
    if not row.seeds:
        return f"diverged{at}"
    diverged = f" ({row.diverged} diverged)" if row.diverged else ""
    return interval(row.score, row.high, digits) + diverged


def _span(seeds: str) -> str:
    """Returns `0-2` for `0, 1, 2`."""
    numbers = [int(seed) for seed in seeds.split(", ")]
    straight = len(numbers) > 2 and numbers == [*range(numbers[0], numbers[-1] + 1)]
    return f"{numbers[0]}-{numbers[-1]}" if straight else seeds


def _protocol(name: str, n: int) -> str:
    return f"{name}, N = {n:,}" if name else "-"


def _numbers(means: pd.DataFrame, name: str, form: Format) -> dict[str, list[str]]:
    """Returns {name: cells}, empty if no row has that number."""
    cells = [form(x) if math.isfinite(x) else "-" for x in means[name]]
    return {name: cells} if set(cells) != {"-"} else {}


def cells(means: pd.DataFrame) -> dict[str, list[str]]:
    """Returns {heading: cells} of a group, without empty columns.

    A floor that all rows share is in the caption.
    """
    rows, digits = list(means.itertuples()), decimals(means.score)
    marks, _ = footnotes(_notes(means))
    names = [DISPLAY_NAMES.get(name, name) for name in means.router]
    marked = zip(names, marks, strict=True)
    texts = {"router": [f"{name} {mark}".strip() for name, mark in marked]}
    forms = FORMATS | {"floor": f"{{:.{_floor_digits(means)}f}}".format}
    for name in ("alpha", "beta"):
        texts |= _numbers(means, name, forms[name])
    if means.loss_weight.nunique() > 1:
        texts["loss weight"] = [*means.loss_weight]
    if means.other.any():
        texts["other"] = [*means.other]
    if means.seed.nunique() > 1:
        texts["seeds" if (means.seeds + means.diverged > 1).any() else "seed"] = [
            *map(_span, means.seed)
        ]
    texts["score"] = [_score(row, digits) for row in rows]
    if (means.pairs > 1).any():
        texts["Δ"] = [difference(row, digits) for row in rows]
        if means.p_holm.notna().any():
            texts["p"] = [*map(p_value, means.p_holm)]
    for name in MEASURED[1:]:
        if name != "floor" or means.floor.nunique() > 1:
            texts |= _numbers(means, name, forms[name])
    return texts


def _notes(means: pd.DataFrame) -> pd.Series:
    return means.notes.where(means.status != "pruned")


def _floor_digits(means: pd.DataFrame) -> int:
    return max(decimals(means.score), decimals(means.floor, 0.1))


def caption(means: pd.DataFrame, shown: Collection[str]) -> str:
    """Returns one line that explains the numbers of a group, of which the columns `shown` are."""
    scored = means[means.status != "pruned"]
    parts = [name for name in means.data.iloc[:1] if name]
    names = dict.fromkeys(map(_protocol, scored.score_name, scored.n))
    parts += [f"score: {' and '.join(names)}, lower is better"] if names else []
    one_floor = scored.floor.nunique() == 1
    if scored.floor.notna().any() and (one_floor or "floor" in shown):
        counts = sorted({int(n) for n in scored.floor_n.dropna()})
        floor = f" {scored.floor.max():.{_floor_digits(means)}f}" * one_floor
        parts.append(
            f"floor{floor}: real images{f' (N = {counts[0]:,})' if len(counts) == 1 else ''}"
        )
    if "overlap" in shown:
        parts.append("overlap: channels that two tasks share on average, of all channels")
    common = f"seeds {_span(means.seed.iloc[0])}" if means.seed.nunique() == 1 else "seeds"
    if (means.seeds > 1).any():
        counts = sorted({int(n) for n in means.seeds if n})
        n = " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]])))
        parts.append(f"mean ± half-width of the 95 % t interval over {common} (n = {n})")
    elif common != "seeds":
        one = (means.seeds + means.diverged <= 1).all()
        parts.append(common.replace("seeds", "seed") if one else common)
    if (means.pairs > 1).any():
        parts.append("Δ: mean paired difference to no routing, likewise")
        parts += filter(None, [reach(means)])
    return "; ".join(parts)


def below(means: pd.DataFrame, shown: Collection[str]) -> list[str]:
    """Returns the lines below a group's table of the columns `shown`: the caption and the notes."""
    return [caption(means, shown), *footnotes(_notes(means))[1]]


def _text(means: pd.DataFrame) -> Text:
    columns, best = cells(means), {"score": lowest(means)}
    sound = means[means.score.notna() & (means.meaningless != 1)]
    for name, how in BETTER.items():
        if name in columns and len(sound) > 1 and sound[name].notna().any():
            top = columns[name][getattr(sound[name], how)()]
            tied = [i for i in sound.index if columns[name][i] == top]
            best[name] = tied if len(tied) < len(sound) else []
    words = [name for name in columns if name not in NUMBERS]
    columns["run"] = [*means.run]
    about, *notes = below(means, columns)
    return Text(columns, [*words, "run"], about, notes, unprinted=["seconds", "run"], best=best)


def markdown(frame: pd.DataFrame) -> str:
    """Returns the tables over seeds as GitHub Markdown, aligned to read as text too."""
    texts = []
    for label, means in parts(frame):
        texts += [f"## {label}\n"] if label else []
        texts.append(_text(means).markdown())
    return "\n".join(texts)


def latex(frame: pd.DataFrame) -> str:
    r"""Returns the tables over seeds for \usepackage{booktabs}; run names are left to the CSV.

    Bold are the lowest score, those whose interval overlaps its, and the best of other columns.
    """
    texts = []
    for _, means in parts(frame):
        text = _text(means)
        several = (means.seeds > 1).any()
        bold = "; bold: the best" + (", and scores whose interval overlaps its" if several else "")
        shown = text.caption + (bold if text.best["score"] else "")
        texts.append(text._replace(caption=f"{shown[0].upper()}{shown[1:]}.").latex())
    return "\n".join(texts)


def console_table(frame: pd.DataFrame) -> RenderableType:
    """Returns the tables over seeds for a terminal of 80 columns; as in LaTeX, the best is bold."""
    shown: list[RenderableType] = []
    for label, means in parts(frame):
        shown += [Line(f"\n{label}", style="bold")] if label else []
        result, columns = _console(means)
        shown += [result, *(Line(line, style="italic") for line in below(means, columns))]
    return Group(*shown)


def _console(means: pd.DataFrame) -> tuple[Table, list[str]]:
    """Returns a group's table of 80 columns, and the headings that fit into it."""
    columns = cells(means)
    columns.pop("seconds", None)
    # words may take several lines, numbers stay whole
    most = {"other": 16, "seeds": 7}

    def width(name: str) -> int:
        lines = [*name.split(), *"\n".join(columns[name]).split("\n")]
        return min(max(map(len, lines)), most.get(name, 80))

    def wide() -> bool:
        return sum(width(name) + 2 for name in columns) > 80

    for name in NARROWED:
        if wide():
            columns.pop(name, None)
    if wide():
        for name in {"score", "Δ"} & columns.keys():
            columns[name] = [re.sub(r" (?=at |\()", "\n", cell) for cell in columns[name]]
    if wide():
        most["other"] = 12
    result = Table(box=None, header_style="bold")
    result.collapse_padding = wide()
    for name in columns:
        options: dict[str, Any] = {"overflow": "fold", "min_width": width(name)}
        if name in (*NUMBERS, "router", "seed"):
            options = {"no_wrap": True}
        result.add_column(name, justify="right" if name in NUMBERS else "left", **options)
    best = lowest(means)
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        result.add_row(*map(Line, row), style="bold" if i in best else None)
    return result, list(columns)


def write_tables(frame: pd.DataFrame, directory: str | Path) -> list[Path]:
    """Writes results.csv (a row per run), table.csv, .md and .tex (over seeds); returns the paths.

    table.csv has all numbers of the table unrounded.
    """
    texts = {
        "results.csv": frame.to_csv(index=False),
        "table.csv": over_seeds(frame).to_csv(index=False),
        "table.md": markdown(frame),
        "table.tex": latex(frame),
    }
    return write_texts(directory, texts)
