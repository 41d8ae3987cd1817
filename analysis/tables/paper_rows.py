"""The runs and the numbers of each row of the papers' tables.

published.yaml says which runs a row takes, and its published numbers. A table's runs are equal in
all that the table does not vary.
"""

__all__ = ["SHARES", "Entry", "Selection", "needs", "paper_rows", "published", "select"]

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from analysis.read.runs import Finished
from analysis.read.settings import ALPHA, Setting, settings
from analysis.read.statistics import over_seeds
from analysis.tables.tables import table
from dtr_lightning.rundir.yaml_values import LOADER

Entry = Mapping[str, Any]  # of published.yaml
SHARES = ["accuracy", "precision", "recall", "loss"]
OF_MEANS = ["score", "low", "high", "seeds", "diverged", "difference"]
OF_MEANS += ["difference_low", "difference_high", "pairs", "partial", "p", "p_holm"]
OF_MEANS += ["score_name", "n", "meaningless", "notes"]


@cache
def published() -> dict[str, dict[str, Any]]:
    """Returns {name of a table: its entry of published.yaml}."""
    file = Path(__file__).parent / "published.yaml"
    return yaml.load(file.read_text(), Loader=LOADER)


class Selection(NamedTuple):
    """The settings of each row of a table, and other runs that match a row but differ otherwise."""

    rows: list[list[Setting]]
    others: list[Finished]

    @property
    def settings(self) -> list[Setting]:
        """All settings, in the order of the rows."""
        return [setting for row in self.rows for setting in row]

    @property
    def runs(self) -> list[Finished]:
        """All runs, in the order of the rows."""
        return [run for setting in self.settings for run in setting.runs]


def _matches(run: Finished, wanted: Mapping[str, Any]) -> bool:
    for key, value in wanted.items():
        option = run.flat.get(key)
        option = option.rsplit(".", 1)[-1] if isinstance(option, str) else option
        if option is None or option not in (value if isinstance(value, list) else [value]):
            return False
    return True


def select(entry: Entry, runs: Sequence[Finished]) -> Selection:
    """Returns the settings of a table's rows: of the group of equal runs that fills most rows."""
    groups: dict[tuple, list[list[Finished]]] = defaultdict(lambda: [[] for _ in entry["rows"]])
    for run in runs:
        for i, row in enumerate(entry["rows"]):
            if _matches(run, entry["match"] | row["match"]):
                key = (run.hash_without("seed", *entry["vary"]), run.protocol, run.smoke)
                groups[key][i].append(run)
                break

    def size(group: list[list[Finished]]) -> tuple[bool, bool, int, int]:
        real = not any(run.smoke for row in group for run in row)
        ours = any(runs and row.get("own") for runs, row in zip(group, entry["rows"], strict=True))
        return real, ours, sum(map(bool, group)), sum(map(len, group))

    best = max(groups.values(), key=size, default=[])
    others = [run for group in groups.values() if group is not best for row in group for run in row]
    return Selection([settings(row) for row in best], others)


def needs(entry: Entry, selection: Selection) -> str | None:
    """Returns one line on what a table lacks; None if it can be drawn."""
    rows, least = entry["rows"], entry.get("least", 2)
    filled = [row for row, same in zip(rows, selection.rows, strict=bool(selection.rows)) if same]
    ours = [row for row in rows if row.get("own")]
    if (
        len(filled) >= 2
        and len(selection.settings) >= least
        and (not ours or any(r in ours for r in filled))
    ):
        return None
    labels = "; ".join(row["label"] for row in ours or rows)
    what = f"one of these and a row more: {labels}" if ours else f"{least} of these: {labels}"
    but = " and ".join(entry["vary"])
    return f"needs finished runs of {what}; equal but for {but}; made by {entry['sweep']}"


def _label(row: str, setting: Setting, others: Sequence[Setting]) -> str:
    """Returns a row's label with what differs between the settings in the same row."""
    differing = [
        f"{letter}={getattr(setting, name):g}"
        for name, letter in (("alpha", ALPHA), ("beta", "β"))
        if len({getattr(other, name) for other in others} - {math.nan}) > 1
    ]
    return ", ".join(filter(None, [row, *differing, setting.other]))


def _baselines(entry: Entry, selection: Selection) -> dict[str, str]:
    """Returns {setting: its baseline} for settings that have exactly one.

    The baseline is no routing, equal otherwise; of a table with a `baseline` entry, its first row.
    """
    axes = ("seed", *entry.get("baseline", ["router"]))
    plain = defaultdict(list)
    for setting in selection.rows[0] if "baseline" in entry else selection.settings:
        if setting.router == "NoRouting":
            plain[setting.runs[0].hash_without(*axes)].append(setting)
    return {
        _name(setting): _name(same[0])
        for setting in selection.settings
        if len(same := plain[setting.runs[0].hash_without(*axes)]) == 1 and setting is not same[0]
    }


def _name(setting: Setting) -> str:
    """Returns the name that `analysis.tables.tables.table` gives a setting."""
    return setting.runs[0].hash_without("seed")


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def paper_rows(entry: Entry, selection: Selection) -> pd.DataFrame:
    """Returns a row per setting: our numbers, unrounded, the published ones, and run directories.

    Holm's correction is over this table alone. Rows that are published but not run have nan for
    ours; rows that are neither are left out. Directories are below the one common to all.
    """
    frame = table(selection.runs)
    frame["baseline"] = frame.setting.map(_baselines(entry, selection)).fillna("")
    means = over_seeds(frame).set_index("setting")
    root = Path(os.path.commonpath([run.path.parent for run in selection.runs]))
    headings = [f"published {name}" for name in entry["columns"].values()]
    rows = []
    for row, same in zip(entry["rows"], selection.rows, strict=True):
        values = row.get("published", [None] * len(headings))
        theirs = dict(zip(headings, values, strict=True)) | {"note": row.get("note", "")}
        if not same and any(value is not None for value in values):
            rows.append({"row": row["label"], "run": ""} | theirs)
        for setting in same:
            ours = means.loc[_name(setting)]
            scored = [run for run in setting.runs if math.isfinite(run.score)]
            cells: dict[str, Any] = {"row": _label(row["label"], setting, same)}
            cells |= {name: ours[name] for name in OF_MEANS}
            cells |= {name: _mean([run.number(name) for run in scored]) for name in SHARES}
            paths = sorted(str(run.path.relative_to(root)) for run in setting.runs)
            rows.append(cells | theirs | {"run": ", ".join(paths)})
    frame = pd.DataFrame(rows, columns=["row", *OF_MEANS, *SHARES, *headings, "note", "run"])
    return frame.astype(dict.fromkeys(headings, float))
