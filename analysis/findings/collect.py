"""The runs of sweeps become archives: of all sweeps that are named, or of none."""

__all__ = ["collect", "whole"]

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from analysis.findings.archive import pack
from analysis.findings.registered import Registered, names
from analysis.read.runs import Finished, read
from dtr_lightning.errors import UserError, choices
from dtr_lightning.rundir.run import find_runs
from dtr_lightning.rundir.yaml_values import LOADER


def collect(
    directories: Sequence[Path],
    folder: Path,
    cka: Callable[[str, Sequence[Finished]], Mapping[Path, Mapping[str, Any]]],
) -> list[tuple[Path, int]]:
    """Archives the sweeps in these directories; returns each archive's path and number of runs.

    cka takes a sweep's name and runs, and returns {run's path: arrays} for those whose CKA is kept.
    UserError, before anything is written, if one is not a registered sweep, whole.
    """
    sweeps: dict[str, list[Finished]] = {}
    for directory in directories:
        name, runs = whole(directory)
        if name in sweeps:
            raise UserError(f"{directory} is findings/{name}, as another of these directories")
        sweeps[name] = runs
    measured = {name: cka(name, runs) for name, runs in sweeps.items()}
    return [(pack(name, runs, folder, measured[name]), len(runs)) for name, runs in sweeps.items()]


def whole(directory: Path) -> tuple[str, list[Finished]]:
    """Returns the name of the registered sweep in a directory, and its runs.

    UserError if it is another sweep, has a run of other settings or a smoke run, or is not
    finished.
    """
    try:
        stored = yaml.load((directory / "sweep.yaml").read_text(), Loader=LOADER)
        full = str(stored["name"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{directory} is not the directory of a sweep") from error
    name = full.removeprefix("findings/")
    if name == full or name not in names():
        raise choices("sweep of the findings", full, [f"findings/{each}" for each in names()])
    reading = read(find_runs([directory]))
    again = f"`python sweep.py {full} --out {directory}`"
    if reading.damaged:
        lines = "; ".join(reading.damaged)
        raise UserError(f"{lines}; move that away, then {again} makes what is missing")
    if left := [f"{run.path.name} was pruned" for run in reading.pruned] + reading.unfinished:
        raise UserError(f"{directory}: {'; '.join(left)}; {again} goes on")
    registered = Registered.of(name)
    done = registered.count(reading.finished)
    if done < registered.runs:
        raise UserError(f"{directory} has {done} of {registered.runs} runs; {again} goes on")
    return name, reading.finished
