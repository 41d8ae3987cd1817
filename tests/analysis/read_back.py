"""Reads tables back from their texts."""

__all__ = ["cells", "spaced", "text_of"]

from rich.console import Console

from analysis.tables.tables import console_table


def text_of(frame, width=80):
    """Returns a table as a terminal shows it."""
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    console.print(console_table(frame))
    return console.export_text()


def cells(text, column):
    """Returns the cells of a column of a Markdown table, from the first row on."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    head = [cell.strip() for cell in rows[0]]
    return [row[head.index(column)].strip() for row in rows[2:]] if column in head else []


def spaced(text):
    """Returns a text without its line breaks."""
    return " ".join(text.split())
