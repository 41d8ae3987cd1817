"""The progress bar of a command."""

__all__ = ["Bar"]

import sys
import time
from collections.abc import Callable
from datetime import timedelta

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
        self.last_tenth, self.began = -1, (0, 0.0)  # work done and seconds at the first call

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
        elif (tenth := 10 * done // total) > self.last_tenth:
            now = time.monotonic()
            if self.last_tenth < 0:
                self.began = (done, now)
            first, then = self.began
            left = round((now - then) * (total - done) / (done - first)) if done > first else None
            eta = f"  {timedelta(seconds=left)} left" if left else ""
            self.last_tenth = tenth
            print(f"{10 * tenth:3d} %  {text}{eta}", file=sys.stderr, flush=True)

    def count(self, total: int, text: str, done: int = 0) -> Callable[[int], None]:
        """Returns a function that adds an amount of work to what is done."""

        def add(amount: int) -> None:
            nonlocal done
            done += amount
            self(done, total, text)

        return add
