"""One self-contained report.html of a directory of runs: read offline, on a phone or on paper."""

__all__ = ["write_report"]

import base64
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from analysis.catalog import FIGURES, PROBES, figure
from analysis.read.runs import Finished, Reading, groups, relative_paths
from analysis.read.statistics import lowest, over_seeds
from analysis.report.doubts import called, doubts
from analysis.tables.tables import below, cells, parts, table
from analysis.tables.text import decimals, interval, p_value
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.atomic import writing
from dtr_lightning.rundir.yaml_values import LOADER

HERE = Path(__file__).parent
CLONE = HERE.parent.parent
DPI, PIXELS = 300, 150  # of the PNGs; CSS pixels for an inch


class Picture(NamedTuple):
    """A figure for the page: its name, title, image as a data URL, and the file of its numbers."""

    name: str
    title: str
    image: str
    width: int  # CSS pixels: text in it is as large as the page's
    numbers: str | None


class Shown(NamedTuple):
    """A table for the page, the answer above it, and the lines below it."""

    label: str
    answer: list[str]
    head: list[str]
    rows: list[tuple[str, ...]]
    below: list[str]

    @classmethod
    def of(cls, label: str, means: pd.DataFrame) -> "Shown":
        """Returns the table of a group over seeds."""
        columns = cells(means)
        rows = list(zip(*columns.values(), strict=True))
        return cls(label, _answer(means), list(columns), rows, below(means, columns))


def write_report(
    sources: Sequence[str | Path],
    directory: Path,
    figures: Path,
    reading: Reading,
    left_out: Sequence[tuple[str, str]],
) -> Path:
    """Writes DIR/report.html from runs of `sources` and the figures there; returns its path.

    Everything is in the one file: nothing is loaded from a network. UserError if no run is done or
    the file cannot be written.
    """
    if not reading.finished:
        raise UserError(f"no report: no run in {directory} is finished")
    runs = [*reading.finished, *reading.pruned]
    frame = table(runs)
    means = over_seeds(frame)
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    tables = [Shown.of(label, part) for label, part in parts(frame)]
    page = environment.get_template("report.html.j2").render(
        title=_first([Path(source).resolve().name for source in sources]),
        question=_question(sources),
        settings=_common(reading.finished),
        protocols=[
            (f": {shown.label}" if shown.label else "", _protocol(group.finished[0]))
            for shown, group in zip(tables, groups(runs), strict=True)
            if group.finished
        ],
        tables=tables,
        pictures=_pictures(figures, directory),
        doubts=doubts(means, reading),
        left_out=left_out,
        runs=[_run_row(run, row) for run, row in zip(*_in_order(runs, frame), strict=True)],
    )
    path = directory / "report.html"
    with writing(path) as part:
        part.write_text(page, "utf-8", errors="backslashreplace")
    return path


def _question(sources: Sequence[str | Path]) -> str:
    """Returns the first line of a shipped sweep's YAML: the question that it asks."""
    try:
        (source,) = sources
        name = yaml.load((Path(source) / "sweep.yaml").read_text(), Loader=LOADER)["name"]
        lines = (CLONE / "sweeps" / f"{name}.yaml").read_text().splitlines()
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return "Runs compared, each with those of its data and protocol."
    return lines[0].lstrip("# ")


def _answer(means: pd.DataFrame) -> list[str]:
    """Returns the result of a group in sentences."""
    sound = means[means.score.notna()]
    if not len(sound):
        return ["No run has a finite score."]
    sound = sound[sound.meaningless != 1]
    if not len(sound):
        return ["No score is a measure of quality: below the table is why."]
    best, digits = next(sound.itertuples()), decimals(means.score)
    seeds = "1 seed" if best.seeds == 1 else f"{best.seeds} seeds"
    score = interval(best.score, best.high, digits)
    sentences = [f"Lowest score: {called(best)}, {score} ({seeds})."]
    close = [called(row) for row in sound.loc[lowest(means)[1:]].itertuples()]
    if close:
        sentences.append(f"Their intervals overlap its: {_first(close)}.")
    plain = sound[(sound.router == "NoRouting") & (sound.baseline == "")]
    if best.router != "NoRouting" and math.isfinite(best.difference):
        text = interval(best.difference, best.difference_high, digits, "+")
        over = f" over {best.pairs} common seeds" if best.pairs > 1 else ""
        p = f", p = {p_value(best.p_holm).rstrip('*')}" if math.isfinite(best.p_holm) else ""
        text = f"Against the same without routing: {text}{over}{p}."
        sentences.append(text.replace("p = <", "p < "))
    elif best.router == "NoRouting" and len(plain) < len(sound):
        sentences.append("No routed setting is below it.")
    worse = sound[sound.difference > 0]
    if len(worse):
        names = [called(row) for row in worse.itertuples()]
        sentences.append(f"Above their own baseline: {_first(names)}.")
    return sentences


def _first(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _common(runs: Sequence[Finished]) -> list[tuple[str, str]]:
    """Returns the options that all runs share, of the trainer the steps alone."""
    shared = dict(runs[0].flat)
    for run in runs[1:]:
        shared = {k: v for k, v in shared.items() if run.flat.get(k, shared) == v}
    shown = {k: v for k, v in shared.items() if v is not None and not k.startswith("trainer.")}
    shown["trainer.max_steps"] = shared.get("trainer.max_steps", "various")
    return [(key, str(value)) for key, value in shown.items()]


def _protocol(run: Finished) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in (run.results.get("protocol") or {}).items()]


def _in_order(runs: Sequence[Any], frame: pd.DataFrame) -> tuple[list[Any], list[Any]]:
    places = relative_paths(runs)
    by_path = {places[run.path]: run for run in runs}
    rows = [row for row in frame.itertuples() if row.run in by_path]
    return [by_path[row.run] for row in rows], rows


def _run_row(run: Any, row: Any) -> dict[str, str]:
    """Returns the row of one run, with the command that computes it again from the clone."""
    meta, place = run.meta, row.run
    config = Path(os.path.abspath(run.config_file))
    config = config.relative_to(CLONE) if config.is_relative_to(CLONE) else config
    again = ["python", "train.py", "--config", str(config), "--out", f"runs/again/{place}"]
    return {
        "run": place,
        "status": row.status,
        "score": f"{row.score:.4f}" if math.isfinite(row.score) else "-",
        "seconds": f"{row.seconds:.0f}" if math.isfinite(row.seconds) else "-",
        "where": f"{meta.get('device', '?')}, {meta.get('host', '?')}",
        "commit": str(meta.get("git", "?")),
        "versions": ", ".join(f"{k} {v}" for k, v in (meta.get("versions") or {}).items()),
        "command": str(meta.get("command", "?")),
        "again": shlex.join(again),
    }


def _pictures(figures: Path, directory: Path) -> list[Picture]:
    order = [*FIGURES, *PROBES]
    known = {file.stem: file for file in sorted(figures.glob("*.png"))}
    pictures = []
    for name in sorted(known, key=lambda n: (order.index(n) if n in order else len(order), n)):
        file = known[name]
        film = file.with_suffix(".gif")
        shown = film if film.exists() else file
        data = base64.b64encode(shown.read_bytes()).decode()
        numbers = file.with_suffix(".csv")
        title = figure(name).TITLE if name in order else name.replace("_", " ")
        image = f"data:image/{shown.suffix[1:]};base64,{data}"
        with Image.open(file) as opened:
            width = round(opened.width / DPI * PIXELS)
        numbers = os.path.relpath(numbers, directory) if numbers.exists() else None
        pictures.append(Picture(file.stem, title, image, width, numbers))
    return pictures
