"""The table of all finished runs: CSV, Markdown, LaTeX (booktabs) and the terminal."""

__all__ = ["console_table", "latex", "markdown", "over_seeds", "table", "write_tables"]

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from analysis.runs import DISPLAY_NAMES, read, settings
from dtr_lightning.errors import UserError
from dtr_lightning.run import Run

COLUMNS = (
    "router alpha beta loss_weight other seed score floor accuracy copies loss seconds "
    "score_name n floor_n run"
).split()
IDENTITY = ["router", "alpha", "beta", "loss_weight", "other", "score_name", "n"]
MEASURED = ["score", "floor", "accuracy", "copies", "loss", "seconds"]
FORMATS: dict[str, Callable[[float], str]] = {
    "score": "{:.2f}".format,
    "floor": "{:.2f}".format,
    "accuracy": "{:.1%}".format,
    "copies": "{:.1%}".format,
    "loss": "{:.4f}".format,
    "seconds": "{:.0f}".format,
}
SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


def table(runs: Iterable[Run]) -> pd.DataFrame:
    """Returns a row per finished run, the best score first, diverged ones (score nan) last.

    accuracy and copies are shares in 0..1, seconds the whole run's; `other` tells runs apart that
    differ in more than router, loss weight and seed. Unfinished and damaged runs have no row.
    """
    finished = read(runs).finished
    rows = []
    for setting in settings(finished):
        for run in setting.runs:
            row = {name: run.number(name) for name in [*MEASURED, "floor_n"]}
            row |= {"router": setting.router, "alpha": setting.alpha, "beta": setting.beta}
            row |= {"loss_weight": setting.loss_weight, "other": setting.other, "seed": run.seed}
            row |= {"score_name": run.protocol[0], "n": run.protocol[1], "run": str(run.path)}
            rows.append(row)
    frame = pd.DataFrame(rows, columns=COLUMNS)
    order = ["score_name", "n", "score"]
    return frame.sort_values(order, ignore_index=True, kind="stable")


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns a row per setting: means over the seeds whose score is finite, sorted by score.

    Adds `std` (sample standard deviation of the score, nan for one seed), `seeds` and `diverged`.
    """
    rows = []
    for identity, group in frame.groupby(IDENTITY, dropna=False, sort=False):
        group = group.sort_values("seed")
        sound = group[group.score.notna()]
        row = dict(zip(IDENTITY, identity, strict=True)) | dict(sound[MEASURED].mean())
        row |= {"std": sound.score.std(), "seeds": len(group), "diverged": len(group) - len(sound)}
        row |= {"seed": ", ".join(map(str, group.seed)), "floor_n": group.floor_n.iloc[0]}
        rows.append(row | {"run": ", ".join(Path(path).name for path in group.run)})
    columns = [*COLUMNS, "std", "seeds", "diverged"]
    means = pd.DataFrame(rows, columns=columns)
    return means.sort_values(["score_name", "n", "score"], ignore_index=True, kind="stable")


def _text(frame: pd.DataFrame, run: bool) -> tuple[list[str], list[list[str]]]:
    """Returns heading and cells as a reader sees them; columns that say nothing are dropped."""
    means = over_seeds(frame)
    texts = pd.DataFrame(index=means.index)
    texts["router"] = [DISPLAY_NAMES.get(name, name) for name in means.router]
    for name in ("alpha", "beta"):
        texts[name] = [f"{x:g}" if math.isfinite(x) else "-" for x in means[name]]
    if means.loss_weight.nunique() > 1:
        texts["loss weight"] = means.loss_weight
    if means.other.any():
        texts["other"] = means.other
    texts["seeds" if (means.seeds > 1).any() else "seed"] = means.seed
    for name in MEASURED:
        texts[name] = [FORMATS[name](x) if math.isfinite(x) else "-" for x in means[name]]
    for i, row in enumerate(means.itertuples()):
        if row.diverged == row.seeds:
            texts.loc[i, "score"] = "diverged"
        else:
            spread = f" ± {row.std:.2f}" if math.isfinite(row.std) else ""
            diverged = f" ({row.diverged} diverged)" if row.diverged else ""
            texts.loc[i, "score"] += spread + diverged
    if means.score_name.nunique() > 1 or means.n.nunique() > 1:
        texts["score of"] = [
            f"{s}, N = {n:,}" for s, n in zip(means.score_name, means.n, strict=True)
        ]
    if run:
        texts["run"] = means.run
    return list(texts.columns), texts.to_numpy().tolist()


def caption(frame: pd.DataFrame) -> str:
    """Returns one line on what the numbers are."""
    names = sorted({f"{s}, N = {n:,}" for s, n in zip(frame.score_name, frame.n, strict=True)})
    counts = sorted({int(n) for n in frame.floor_n.dropna()})
    floor = f" (N = {counts[0]:,})" if len(counts) == 1 else ""
    seeds = "; mean ± standard deviation over seeds" if frame.seed.nunique() > 1 else ""
    return f"score: {' and '.join(names)}, lower is better; floor: real images{floor}{seeds}"


def markdown(frame: pd.DataFrame) -> str:
    """Returns the table over seeds as GitHub Markdown, its columns aligned to read as text too."""
    head, rows = _text(frame, run=True)
    cells = [head, *[[cell.replace("|", r"\|") for cell in row] for row in rows]]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * width for width in widths]
    padded = [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in cells]
    lines = ["| " + " | ".join(row) + " |" for row in [padded[0], rule, *padded[1:]]]
    return "\n".join([*lines, "", caption(frame), ""])


def _escape(text: str) -> str:
    return "".join(SPECIAL.get(character, character) for character in text)


def latex(frame: pd.DataFrame) -> str:
    r"""Returns the table over seeds for \usepackage{booktabs}; run names are left to the CSV."""
    head, rows = _text(frame, run=False)
    greek = {"alpha": r"$\alpha$", "beta": r"$\beta$"}
    titles = [greek.get(name, _escape(name)) for name in head]
    lines = [" & ".join(row) + r" \\" for row in [titles, *[map(_escape, r) for r in rows]]]
    align = "".join("r" if name in (*greek, *MEASURED) else "l" for name in head)
    return "\n".join(
        [
            "% " + caption(frame),
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def console_table(frame: pd.DataFrame) -> Table:
    """Returns the table over seeds for a terminal of 80 columns; the best row is bold."""
    head, rows = _text(frame, run=False)
    told = caption(frame)
    floors = {row[head.index("floor")] for row in rows}
    if len(floors) == 1:
        told = told.replace("floor: ", f"floor {floors.pop()}: ")
    dull = ["floor", "seconds"] if "floor " in told else ["seconds"]
    keep = [name for name in head if name not in dull]
    rows = [[row[head.index(name)] for name in keep] for row in rows]
    result = Table(caption=told, caption_justify="left", box=None, header_style="bold")
    for name in keep:
        right = name in ("alpha", "beta", *MEASURED)
        # what tells the rows apart may take several lines, numbers stay whole
        options: dict[str, Any] = {"overflow": "fold", "min_width": 16 if name == "other" else None}
        if right or name in ("router", "loss weight"):
            options = {"no_wrap": True}
        result.add_column(name, justify="right" if right else "left", **options)
    for i, row in enumerate(rows):
        result.add_row(*row, style="bold" if i == 0 and frame.score.notna().any() else None)
    return result


def write_tables(frame: pd.DataFrame, directory: str | Path) -> list[Path]:
    """Writes results.csv (a row per run), table.md, table.tex (over seeds); returns the paths."""
    directory = Path(directory)
    texts = {
        "results.csv": frame.to_csv(index=False),
        "table.md": markdown(frame),
        "table.tex": latex(frame),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (directory / name).write_text(text)
    except OSError as error:
        raise UserError(f"tables cannot be written to {directory}: {error.strerror}") from error
    return [directory / name for name in texts]
