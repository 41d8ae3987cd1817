"""Tables as text: GitHub Markdown and LaTeX (booktabs), and how a number is written."""

__all__ = [
    "DAGGER",
    "Text",
    "decimals",
    "interval",
    "latex_cell",
    "p_value",
    "published_cells",
    "write_texts",
]

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dtr_lightning.errors import UserError

DAGGER, PUBLISHED = "†", "published "
ESCAPES = {ord(c): f"\\{c}" for c in "&%$#_{}"} | {
    ord("\\"): r"\textbackslash{}",
    ord("~"): r"\textasciitilde{}",
    ord("^"): r"\textasciicircum{}",
    ord("<"): r"$<$",
    ord(">"): r"$>$",
    ord("±"): r"$\pm$",
    ord("Δ"): r"$\Delta$",
    ord("\N{GREEK SMALL LETTER ALPHA}"): r"$\alpha$",
    ord("β"): r"$\beta$",
    ord(DAGGER): r"$\dagger$",
}


def decimals(values: Iterable[float], two: float = 1.0) -> int:
    """Returns the decimals that show the smallest finite value of a column, whatever its sign.

    These are 2 from the value `two` on, 3 from a tenth of it on, 4 below.
    """
    least = min((abs(value) for value in values if math.isfinite(value)), default=two)
    return 2 if least >= two else 3 if least >= two / 10 else 4


def interval(mean: float, high: float, digits: int = 2, sign: str = "") -> str:
    """Returns mean ± half-width of the interval that ends at high; no ± where that is nan."""
    if not math.isfinite(mean):
        return "-"
    half = f" ± {high - mean:.{digits}f}" if math.isfinite(high) else ""
    return f"{mean:{sign}.{digits}f}{half}"


def p_value(p: float) -> str:
    """Returns a p-value with * below 5 %; - for nan."""
    if math.isnan(p):
        return "-"
    return ("<0.001" if p < 0.001 else f"{p:.3f}") + "*" * (p < 0.05)


def published_cells(values: Sequence[float]) -> list[str]:
    """Returns a column of published numbers: whole where all are, else two digits; - for nan."""
    known = [x for x in values if not math.isnan(x)]
    digits = 2 if any(x % 1 for x in known) else 0
    return ["-" if math.isnan(x) else f"{x:.{digits}f}" for x in values]


def latex_cell(cell: str) -> str:
    """Returns a cell as LaTeX: what is special is escaped, a minus is a minus."""
    return re.sub(r"^-(?=\d)", "$-$", cell.translate(ESCAPES))


class Text(NamedTuple):
    """Columns {heading: cells}, those that are text, a caption, and lines below the table.

    The columns in `traced`, such as run directories, are too long for print: LaTeX has them as
    comments at the end of each row. It groups the columns `published ...` under one heading.
    """

    columns: Mapping[str, Sequence[str]]
    words: Sequence[str]
    caption: str
    notes: Sequence[str] = ()
    traced: Sequence[str] = ()

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The cells of each row."""
        return list(zip(*self.columns.values(), strict=True))

    def markdown(self) -> str:
        """Returns GitHub Markdown whose columns are aligned to read as text too."""
        lines = [[cell.replace("|", r"\|") for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
        rule = [
            "-" * width if name in (*self.words, *self.traced) else "-" * (width - 1) + ":"
            for name, width in zip(self.columns, widths, strict=True)
        ]
        padded = [
            [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
            for line in (lines[0], rule, *lines[1:])
        ]
        told = [line for note in self.notes for line in ("", note)]
        table = ["| " + " | ".join(line) + " |" for line in padded]
        return "\n".join([self.caption, "", *table, *told, ""])

    def latex(self) -> str:
        r"""Returns a table environment for \usepackage{booktabs}."""
        shown = [name for name in self.columns if name not in self.traced]
        align = "".join("l" if name in self.words else "r" for name in shown)
        body = []
        for i in range(len(self.rows)):
            cells = " & ".join(latex_cell(self.columns[name][i]) for name in shown)
            trace = "; ".join(self.columns[name][i] for name in self.traced)
            body.append(rf"{cells} \\" + (f" % {trace}" if trace.strip("- ;") else ""))
        told = [rf"\par\footnotesize {latex_cell(note)}" for note in self.notes]
        return "\n".join(
            [
                *(r"\begin{table}", r"\centering", rf"\caption{{{latex_cell(self.caption)}}}"),
                *(rf"\begin{{tabular}}{{{align}}}", r"\toprule", *_heading(shown)),
                *(r"\midrule", *body, r"\bottomrule", r"\end{tabular}", *told),
                *(r"\end{table}", ""),
            ]
        )


def _heading(names: Sequence[str]) -> list[str]:
    """Returns the lines of a LaTeX heading; published columns are next to each other."""
    theirs = [i for i, name in enumerate(names) if name.startswith(PUBLISHED)]
    titles = " & ".join(latex_cell(name.removeprefix(PUBLISHED)) for name in names) + r" \\"
    if not theirs:
        return [titles]
    first, last = theirs[0], theirs[-1]
    over = "& " * first + rf"\multicolumn{{{len(theirs)}}}{{c}}{{published}}"
    rest = " &" * (len(names) - 1 - last)
    return [rf"{over}{rest} \\", rf"\cmidrule(lr){{{first + 1}-{last + 1}}}", titles]


def write_texts(directory: str | Path, texts: Mapping[str, str]) -> list[Path]:
    """Writes {file name: text} into a directory that is made if need be; returns the paths.

    Raises UserError where that is not possible.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (directory / name).write_text(text)
    except OSError as error:
        raise UserError(f"tables cannot be written to {directory}: {error.strerror}") from error
    return [directory / name for name in texts]
