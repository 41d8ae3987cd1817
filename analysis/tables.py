"""The table of all finished runs: CSV, Markdown, LaTeX (booktabs) and the terminal."""

__all__ = "caption cells console_table latex markdown over_seeds table write_tables".split()

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from analysis.layout import decimals, interval, latex_cell, p_value, write_texts
from analysis.runs import Finished, read
from analysis.settings import DISPLAY_NAMES, settings
from analysis.statistics import MEASURED, PROTOCOL, SETTING, over_seeds, ranked, reach
from dtr_lightning.run import Run

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
NARROWED = [
    "overlap",
    "seconds",
    "floor",
    "copies",
    "loss",
    "accuracy",
]  # what a narrow table drops, in turn


def table(runs: Iterable[Run]) -> pd.DataFrame:
    """Returns a row per run: the best score first, then diverged runs (score nan), then pruned.

    accuracy, copies and overlap (channels that two tasks both read) are shares in 0..1, seconds the
    whole run's; `other` tells runs apart that differ in more than router, loss weight and seed;
    `setting` is equal for runs that differ in their seed alone, `baseline` the setting that differs
    from it in having no routing. `ended_at` is the step where a run diverged or was pruned.
    Unfinished and damaged runs have no row.
    """
    reading = read(runs, records=False)
    found = settings([*reading.finished, *reading.pruned])
    names = {id(setting): setting.runs[0].hash_without("seed") for setting in found}
    shared = {id(setting): setting.runs[0].hash_without("seed", "router") for setting in found}
    plain = [s for s in found if s.router == "NoRouting"]
    baselines = {shared[id(s)]: names[id(s)] for s in plain}
    rows = []
    for setting in found:
        name, baseline = names[id(setting)], baselines.get(shared[id(setting)], "")
        row = {key: getattr(setting, key) for key in SETTING}
        row |= {"setting": name, "baseline": baseline if setting.router != "NoRouting" else ""}
        rows += [row | _measured(run) for run in setting.runs]
    return ranked(rows, COLUMNS)


def _measured(run: Run) -> dict[str, Any]:
    row: dict[str, Any] = {"seed": run.seed, "run": str(run.path)}
    if isinstance(run, Finished):
        row |= {name: run.number(name) for name in [*MEASURED, "floor_n"]}
        row |= {"score_name": run.protocol[0], "n": run.protocol[1]}
        status = "done" if math.isfinite(run.score) else "diverged"
        return row | {"status": status, "ended_at": run.number("diverged_at")}
    ended = {name: run.meta.get(f"pruned_{name}") for name in ("at", "score")}
    at, score = (math.nan if value is None else float(value) for value in ended.values())
    row |= {"score_name": "", "n": 0, "status": "pruned"}
    return row | {"ended_at": at, "pruned_score": score}


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
    """Returns 0, 1, 2 as 0-2."""
    numbers = [int(seed) for seed in seeds.split(", ")]
    straight = len(numbers) > 2 and numbers == [*range(numbers[0], numbers[-1] + 1)]
    return f"{numbers[0]}-{numbers[-1]}" if straight else seeds


def _protocol(name: str, n: int) -> str:
    return f"{name}, N = {n:,}" if name else "-"


def _numbers(means: pd.DataFrame, name: str, form: Format) -> dict[str, list[str]]:
    """Returns {name: cells}, empty if no row has that number."""
    cells = [form(x) if math.isfinite(x) else "-" for x in means[name]]
    return {name: cells} if set(cells) != {"-"} else {}


def cells(means: pd.DataFrame, run: bool) -> tuple[list[str], list[list[str]]]:
    """Returns heading and cells as a reader sees them; columns that say nothing are dropped."""
    rows, digits = list(means.itertuples()), decimals(means.score)
    floor = f"{{:.{max(digits, decimals(means.floor, 0.1))}f}}".format
    forms = FORMATS | {"floor": floor}
    texts = {"router": [DISPLAY_NAMES.get(name, name) for name in means.router]}
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
        ends = zip(means.difference, means.difference_high, strict=True)
        texts["Δ"] = [interval(mean, high, digits, "+") for mean, high in ends]
        texts["p"] = [*map(p_value, means.p_holm)]
    for name in MEASURED[1:]:
        texts |= _numbers(means, name, forms[name])
    scored = means[means.status != "pruned"]
    if scored.score_name.nunique() > 1 or scored.n.nunique() > 1:
        texts["score of"] = [_protocol(row.score_name, row.n) for row in rows]
    if run:
        texts["run"] = [*means.run]
    return list(texts), [list(cells) for cells in zip(*texts.values(), strict=True)]


def caption(means: pd.DataFrame) -> str:
    """Returns one line on what the numbers are."""
    scored = means[means.status != "pruned"]
    names = sorted({_protocol(s, n) for s, n in zip(scored.score_name, scored.n, strict=True)})
    told = [f"score: {' and '.join(names)}, lower is better"] if names else []
    if scored.floor.notna().any():
        counts = sorted({int(n) for n in scored.floor_n.dropna()})
        told.append(f"floor: real images{f' (N = {counts[0]:,})' if len(counts) == 1 else ''}")
    if scored.overlap.notna().any():
        told.append("overlap: channels that two tasks share on average, of all channels")
    common = f"seeds {_span(means.seed.iloc[0])}" if means.seed.nunique() == 1 else "seeds"
    if (means.seeds > 1).any():
        counts = sorted({int(n) for n in means.seeds if n})
        n = " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]])))
        told.append(f"mean ± half-width of the 95 % t interval over {common} (n = {n})")
    elif common != "seeds":
        one = (means.seeds + means.diverged <= 1).all()
        told.append(common.replace("seeds", "seed") if one else common)
    if (means.pairs > 1).any():
        told.append("Δ: mean paired difference to no routing, likewise")
        told.append(reach(means))
    return "; ".join(told)


def markdown(frame: pd.DataFrame) -> str:
    """Returns the table over seeds as GitHub Markdown, its columns aligned to read as text too."""
    means = over_seeds(frame)
    head, rows = cells(means, run=True)
    texts = [head, *[[cell.replace("|", r"\|") for cell in row] for row in rows]]
    widths = [max(3, *map(len, column)) for column in zip(*texts, strict=True)]
    rule = ["-" * width for width in widths]
    padded = [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in texts]
    lines = ["| " + " | ".join(row) + " |" for row in [padded[0], rule, *padded[1:]]]
    return "\n".join([*lines, "", caption(means), ""])


def latex(frame: pd.DataFrame) -> str:
    r"""Returns the table over seeds for \usepackage{booktabs}; run names are left to the CSV."""
    means = over_seeds(frame)
    head, rows = cells(means, run=False)
    greek = {"alpha": r"$\alpha$", "beta": r"$\beta$"}
    titles = [greek.get(name, latex_cell(name)) for name in head]
    texts = [[*map(latex_cell, row)] for row in rows]
    lines = [" & ".join(row) + r" \\" for row in [titles, *texts]]
    align = "".join("r" if name in NUMBERS else "l" for name in head)
    start = ["% " + caption(means), rf"\begin{{tabular}}{{{align}}}", r"\toprule", lines[0]]
    return "\n".join([*start, r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}", ""])


def console_table(frame: pd.DataFrame) -> Table:
    """Returns the table over seeds for a terminal of 80 columns; the best row is bold."""
    means = over_seeds(frame)
    head, rows = cells(means, run=False)
    told, columns = caption(means), dict(zip(head, zip(*rows, strict=True), strict=True))
    columns.pop("seconds", None)
    if len(floors := {*columns.get("floor", ())} - {"-"}) == 1:
        told = told.replace("floor: ", f"floor {floors.pop()}: ")
        del columns["floor"]
    # what tells the rows apart may take several lines, numbers stay whole
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
        columns["score"] = [re.sub(r" (?=at |\()", "\n", cell) for cell in columns["score"]]
    if wide():
        most["other"] = 12
    result = Table(caption=told, caption_justify="left", box=None, header_style="bold")
    result.collapse_padding = wide()
    for name in columns:
        options: dict[str, Any] = {"overflow": "fold", "min_width": width(name)}
        if name in (*NUMBERS, "router", "seed"):
            options = {"no_wrap": True}
        result.add_column(name, justify="right" if name in NUMBERS else "left", **options)
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        result.add_row(*row, style="bold" if i == 0 and means.score.notna().any() else None)
    return result


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
