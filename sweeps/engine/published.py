"""The published numbers of a sweep's points, and a table of them beside what was measured."""

__all__ = ["Published", "beside", "read_published"]

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from dtr_lightning.errors import UserError, choices
from sweeps.engine.values import finite, is_word, named, shown

FORM = 'published takes {table: "Table 2", rows: {DTR: {FID: 8.90}}}'


@dataclass(frozen=True)
class Published:
    """Numbers by the label of a point without its seed, and the table that they are of."""

    table: str
    rows: dict[str, dict[str, float]]

    def text(self, label: str) -> str:
        """Returns the numbers of a point in one line, empty for a point without any."""
        return ", ".join(f"{name} {value:g}" for name, value in self.rows.get(label, {}).items())

    def check(self, labels: Iterable[str]) -> None:
        """Raises UserError for a row that is no point of the sweep."""
        known = list(dict.fromkeys(labels))
        for label in self.rows:
            if label not in known:
                raise choices("row in published", label, known)


def read_published(content: Any, where: str) -> Published | None:
    """Returns the published numbers of a sweep's YAML, None if it has none."""
    if content is None:
        return None
    if content.keys() != {"table", "rows"} or not is_word(content["table"]):
        raise UserError(f"{where}: {FORM}; got {shown(content)}")
    rows = content["rows"]
    if not isinstance(rows, Mapping) or not all(map(is_word, rows)):
        raise UserError(f"{where}: {FORM}; got rows {shown(rows)}")
    for label, numbers in rows.items():
        sound = isinstance(numbers, Mapping) and all(map(is_word, numbers))
        if not sound or not all(map(finite, numbers.values())):
            raise UserError(f"{where}: {FORM}; got {named(label)}: {shown(numbers)}")
    return Published(content["table"], {key: dict(row) for key, row in rows.items()})


def beside(
    published: Published, metric: str, measured: Mapping[str, Iterable[float | None]]
) -> Table:
    """Returns a table of what was measured, of every seed, beside what was published.

    `measured` has the values of the metric by the label of a point without its seed.
    """
    names = list(dict.fromkeys(name for row in published.rows.values() for name in row))
    note = f"Published: {published.table}. A comparison needs the same images, steps and protocol."
    table = Table(box=None, caption=note, caption_justify="left")
    table.add_column("", no_wrap=True)
    for heading in (f"{metric}, measured", *(f"{name}, published" for name in names)):
        table.add_column(heading, justify="right")
    for label, values in measured.items():
        row = published.rows.get(label, {})
        ours = ", ".join(f"{value:.4g}" for value in values if finite(value))
        theirs = [f"{row[name]:g}" if name in row else "-" for name in names]
        table.add_row(label, ours or "-", *theirs)
    return table
