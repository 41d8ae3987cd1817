"""Tables as text: GitHub Markdown and LaTeX (booktabs), and how a number is written."""

__all__ = [
    "DAGGER",
    "Text",
    "decimals",
    "difference",
    "footnotes",
    "interval",
    "latex_cell",
    "p_value",
    "published_cells",
    "write_texts",
]

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analysis.read.statistics import parted
from dtr_lightning.rundir.atomic import writing

DAGGER, PUBLISHED = "†", "published "
SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
RAISED = str.maketrans("0123456789", SUPERSCRIPTS)
LETTERS = {"ß": "ss", "æ": "ae", "ø": "o", "å": "aa", "ł": "l", "Æ": "AE", "Ø": "O", "Å": "AA"}
ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "="}
ACCENTS |= {"\u0307": ".", "\u0308": '"', "\u030b": "H", "\u030c": "v", "\u0327": "c"}
ESCAPES = {ord(c): f"\\{c}" for c in "&%$#_{}"} | {
    ord("\\"): r"\textbackslash{}",
    ord("~"): r"\textasciitilde{}",
    ord("^"): r"\textasciicircum{}",
    ord("|"): r"\textbar{}",
    ord("<"): r"$<$",
    ord(">"): r"$>$",
    ord("±"): r"$\pm$",
    ord("Δ"): r"$\Delta$",
    ord("\N{GREEK SMALL LETTER ALPHA}"): r"$\alpha$",
    ord("β"): r"$\beta$",
    ord(DAGGER): r"$\dagger$",
    **{ord(mark): f"$^{i}$" for i, mark in enumerate(SUPERSCRIPTS)},
    **{ord(letter): rf"{{\{name}}}" for letter, name in LETTERS.items()},
}
GREEK = {"alpha": r"$\alpha$", "beta": r"$\beta$"}


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
    return f"{mean:{sign}z.{digits}f}{half}"


def difference(row: Any, digits: int) -> str:
    """Returns the paired difference of a row over seeds, and its pairs where seeds are without."""
    text = interval(row.difference, row.difference_high, digits, "+")
    return f"{text} ({row.pairs:.0f} pair{'s' * (row.pairs > 1)})" if row.partial == 1 else text


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


def footnotes(notes: pd.Series) -> tuple[list[str], list[str]]:
    """Returns the marks of each row, and the lines below the table, each sentence once.

    notes are those of each row, as `statistics.joined` writes them, nan for rows without a number
    of ours. A note on all rows has no mark.
    """
    ours = [parted(text) for text in notes.dropna()]
    counts = Counter(sentence for sentences in ours for sentence in sentences)
    lines = [f"All rows: {sentence}." for sentence, n in counts.items() if n == len(ours)]
    some = [sentence for sentence, n in counts.items() if n < len(ours)]
    marks = {sentence: str(i).translate(RAISED) for i, sentence in enumerate(some, 1)}
    for sentence, mark in marks.items():
        capital = f"{sentence[0].upper()}{sentence[1:]}"
        lines.append(f"{mark} {capital} ({counts[sentence]} of {len(ours)} rows).")
    rows = [[] if pd.isna(text) else parted(text) for text in notes]
    return [",".join(marks[each] for each in row if each in marks) for row in rows], lines


def latex_cell(cell: str) -> str:
    """Returns a cell as LaTeX in ASCII, with special characters escaped.

    A letter that pdfLaTeX cannot set is named by its Unicode number.
    """
    text = unicodedata.normalize("NFC", " ".join(cell.split())).translate(ESCAPES)
    text = "".join(map(_letter, text))
    text = re.sub(r"--+", lambda dashes: "{}".join(dashes[0]), text)
    text = re.sub(r"^([\[*])", r"{\1}", text)  # else the row end before it would take it
    return re.sub(r"^-(?=\d)", "$-$", text)


def _letter(letter: str) -> str:
    if letter.isascii():
        return letter
    base, *accents = list(unicodedata.normalize("NFD", letter))
    if base.isascii() and len(accents) == 1 and accents[0] in ACCENTS:
        return f"\\{ACCENTS[accents[0]]}{{{base}}}"
    return f"[U+{ord(letter):04X}]"


def _markdown_cell(cell: str) -> str:
    return re.sub(r"([|\\]|<(?=[a-zA-Z/!?]))", r"\\\1", " ".join(cell.split()))


class Text(NamedTuple):
    """Columns {heading: cells}, those that are text, a caption, and lines below the table.

    The columns in `traced`, such as run directories, are too long for print: LaTeX has them as
    comments at the end of each row, and leaves those in `unprinted` out. It groups the columns
    `published ...` under one heading, and prints the rows in `best` {heading: rows} in bold.
    """

    columns: Mapping[str, Sequence[str]]
    words: Sequence[str]
    caption: str
    notes: Sequence[str] = ()
    traced: Sequence[str] = ()
    unprinted: Sequence[str] = ()
    best: Mapping[str, Collection[int]] = {}

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The cells of each row."""
        return list(zip(*self.columns.values(), strict=True))

    def markdown(self) -> str:
        """Returns GitHub Markdown with aligned columns."""
        lines = [[*map(_markdown_cell, row)] for row in (self.columns, *self.rows)]
        widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
        texts = [name in (*self.words, *self.traced) for name in self.columns]
        rule = [
            "-" * width if words else "-" * (width - 1) + ":"
            for width, words in zip(widths, texts, strict=True)
        ]
        padded = [
            [
                cell.ljust(width) if words else cell.rjust(width)
                for cell, width, words in zip(line, widths, texts, strict=True)
            ]
            for line in (lines[0], rule, *lines[1:])
        ]
        notes = [line for note in self.notes for line in ("", note)]
        table = ["| " + " | ".join(line) + " |" for line in padded]
        return "\n".join([self.caption, "", *table, *notes, ""])

    def latex(self) -> str:
        r"""Returns a table environment for \usepackage{booktabs}."""
        left_out = (*self.traced, *self.unprinted)
        shown = [name for name in self.columns if name not in left_out]
        align = "".join("l" if name in self.words else "r" for name in shown)
        body = []
        for i in range(len(self.rows)):
            cells = [latex_cell(self.columns[name][i]) for name in shown]
            for place, name in enumerate(shown):
                if i in self.best.get(name, ()):
                    cells[place] = rf"\textbf{{{cells[place]}}}"
            trace = "; ".join(" ".join(self.columns[name][i].split()) for name in self.traced)
            row = rf"{' & '.join(cells)} \\"
            body.append(row + (f" % {_ascii(trace)}" if trace.strip("- ;") else ""))
        notes = [rf"\par\footnotesize {latex_cell(note)}" for note in self.notes]
        return "\n".join(
            [
                *(r"\begin{table}", r"\centering", rf"\caption{{{latex_cell(self.caption)}}}"),
                *(rf"\begin{{tabular}}{{{align}}}", r"\toprule", *_heading(shown)),
                *(r"\midrule", *body, r"\bottomrule", r"\end{tabular}", *notes),
                *(r"\end{table}", ""),
            ]
        )


def _ascii(comment: str) -> str:
    return comment.encode("ascii", "backslashreplace").decode()


def _heading(names: Sequence[str]) -> list[str]:
    """Returns the lines of a LaTeX heading; published columns are next to each other."""
    theirs = [i for i, name in enumerate(names) if name.startswith(PUBLISHED)]
    titles = [GREEK.get(name, latex_cell(name.removeprefix(PUBLISHED))) for name in names]
    titles = " & ".join(titles) + r" \\"
    if not theirs:
        return [titles]
    first, last = theirs[0], theirs[-1]
    over = "& " * first + rf"\multicolumn{{{len(theirs)}}}{{c}}{{published}}"
    rest = " &" * (len(names) - 1 - last)
    return [rf"{over}{rest} \\", rf"\cmidrule(lr){{{first + 1}-{last + 1}}}", titles]


def write_texts(directory: str | Path, texts: Mapping[str, str]) -> list[Path]:
    """Writes {file name: text} into a directory; returns the paths."""
    paths = [Path(directory) / name for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        with writing(path) as part:
            part.write_text(text, "utf-8", errors="backslashreplace")
    return paths
