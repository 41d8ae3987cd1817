"""The progress bar of a command."""

__all__ = ["Bar"]

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """A bar with an ETA on a terminal; a line per tenth of the work elsewhere. Writes to stderr."""

    def __init__(self, text: str) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=Console(stderr=True))
        self.task = self.bar.add_task(text, total=None)
        self.told = -1

    def __enter__(self) -> "Bar":
        if self.bar.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def __call__(self, done: int, total: int, text: str) -> None:
        """Shows how much of the total is done."""
        if self.bar.console.is_terminal:
            self.bar.update(self.task, description=text, completed=done, total=total)
        elif (tenth := 10 * done // total) > self.told:
            self.told = tenth
            print(f"{10 * tenth:3d} %  {text}", file=sys.stderr, flush=True)
