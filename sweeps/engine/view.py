"""What a running sweep shows: bars in a terminal, else a line per finished trial."""

__all__ = ["Bars", "View", "make_view"]

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

from dtr_lightning.experiment.notes import MEANINGLESS, notes_of
from sweeps.engine.plan import Point, Sweep
from sweeps.engine.values import finite


class View:
    """Counts finished trials and keeps the best score that says something; a line per trial."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self.sweep, self.console = sweep, console
        self.total, self.finished = sweep.total, 0  # no total: a search for some hours
        self.best: tuple[float, str] | None = None
        self.notes: set[str] = set()

    def __enter__(self) -> "View":
        return self

    def __exit__(self, *_: Any) -> None:
        """Leaves the terminal as it was."""

    def start(self, point: Point) -> None:
        """Shows that a trial starts."""

    def progress(self, point: Point, progress: Mapping[str, Any]) -> None:
        """Shows how far a trial is (experiment.progress.Progress, as a dict)."""

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.console.file.flush()

    def stored(self, point: Point, results: Mapping[str, Any]) -> None:
        """Counts a point that is done."""
        self.finished += 1
        self._compare(point, results)

    def finish(self, point: Point, results: Mapping[str, Any]) -> None:
        """Prints what a trial of this command came to."""
        self.stored(point, results)
        for note in results.get("notes") or ():
            if note not in self.notes:
                self.notes.add(note)
                self.say(f"note: {note}")
        score, loss = (_text(results.get(key)) for key in (self.sweep.metric, "loss"))
        seconds = _text(results.get("seconds"), ".0f")
        self.say(
            f"[{self.finished:>{len(self.total_text)}}/{self.total_text}] {point.label}: "
            f"{self.sweep.metric} {score}, loss {loss}, {seconds} s; {self.best_text}"
        )

    def leave(self, point: Point, reason: str, ends: bool = False) -> None:
        """Prints why a trial stopped without results; `ends`: it will not go on."""
        self.finished += ends
        self.say(f"{point.label}: {reason}")

    @property
    def total_text(self) -> str:
        """The number of trainings, or a question mark."""
        return str(self.total or "?")

    def _compare(self, point: Point, results: Mapping[str, Any]) -> None:
        score = results.get(self.sweep.metric)
        if score is None or not finite(score) or MEANINGLESS & notes_of(results).keys():
            return
        sign = 1 if self.sweep.recipe.direction == "minimize" else -1
        if self.best is None or sign * score < sign * self.best[0]:
            self.best = (score, point.label)

    @property
    def best_text(self) -> str:
        """The best score so far and its point."""
        return f"best {_text(self.best[0])} ({self.best[1]})" if self.best else "best -"


def _text(value: Any, form: str = ".4g") -> str:
    return format(value, form) if isinstance(value, int | float) else "-"


class Bars(View):
    """A bar per running trial, and one for the sweep; its ETA counts unfinished trials in part."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        super().__init__(sweep, console)
        self.trials = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.percentage:>3.0f} %"),
            Remaining(compact=True),
            TextColumn("{task.fields[state]}", style="dim"),
            console=console,
        )
        self.whole = Progress(
            TextColumn("[bold]{task.fields[done]}/" + self.total_text + " done"),
            BarColumn(bar_width=16),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            Remaining(compact=True),
            TextColumn("{task.fields[best]}"),
            console=console,
            speed_estimate_period=180,
        )
        self.task = self.whole.add_task("", total=self.total, done=0, best=self.best_text)
        self.tasks: dict[str, TaskID] = {}
        self.parts: dict[str, float] = {}
        self.live = Live(Group(self.trials, self.whole), console=console, refresh_per_second=4)

    def __enter__(self) -> "View":
        self.whole.reset(
            self.task,
            completed=self.finished,
            total=self.total,
            done=self.finished,
            best=self.best_text,
        )
        self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.live.stop()

    def start(self, point: Point) -> None:
        """Adds a bar."""
        self.tasks[point.name] = self.trials.add_task(point.label, total=None, state="starts")

    def progress(self, point: Point, progress: Mapping[str, Any]) -> None:
        """Moves the trial's bar and the sweep's."""
        state = f"{progress['stage']} step {progress['step']}"
        for key, name in (("loss", "loss"), ("score", self.sweep.metric)):
            if progress[key] is not None:
                state += f" {name} {_text(progress[key])}"
        done, total = progress["done"], progress["total"]
        self.trials.update(self.tasks[point.name], completed=done, total=total, state=state)
        self.parts[point.name] = done / total
        self._move()

    def _move(self) -> None:
        self.whole.update(
            self.task,
            completed=self.finished + sum(self.parts.values()),
            done=self.finished,
            best=self.best_text,
        )

    def stored(self, point: Point, results: Mapping[str, Any]) -> None:
        """Counts a point and removes its bar."""
        super().stored(point, results)
        self._remove(point)

    def leave(self, point: Point, reason: str, ends: bool = False) -> None:
        """Removes a bar and prints why."""
        super().leave(point, reason, ends)
        self._remove(point)

    def _remove(self, point: Point) -> None:
        self.parts.pop(point.name, None)
        if (task := self.tasks.pop(point.name, None)) is not None:
            self.trials.remove_task(task)
        self._move()


def make_view(sweep: Sweep, console: Console) -> View:
    """Returns bars for a terminal and lines for anything else."""
    return (Bars if console.is_terminal else View)(sweep, console)
