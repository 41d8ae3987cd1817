"""How far a sweep is, from any terminal or node, without the imports of a training."""

__all__ = ["status", "stop"]

import contextlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from dtr_lightning.cli.duration import duration
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.notes import MEANINGLESS, notes_of
from sweeps.engine.database import Database
from sweeps.engine.driver import default_folder
from sweeps.engine.folder import Folder
from sweeps.engine.plan import Point
from sweeps.engine.recipe import Recipe, read

SHOWN = 20  # failed points that are named


def _folder(sweep: str, out: str | None, reading: dict[str, Any]) -> tuple[Recipe, Folder]:
    recipe = read(sweep, **reading)
    folder = Folder(out or default_folder(recipe.name, reading))
    folder.stored()
    return recipe, folder


def stop(sweep: str, out: str | None, how: str, console: Console, **reading: Any) -> None:
    """Asks the commands of a sweep to stop, when their trials end (finish) or have saved (save)."""
    _, folder = _folder(sweep, out, reading)
    count = folder.ask_to_stop(save=how == "save")
    when = "have saved" if how == "save" else "end"
    commands = "1 command" if count == 1 else f"{count} commands"
    console.print(f"asked {commands} in {folder.path} to stop when trials {when}", soft_wrap=True)


def status(
    sweep: str, out: str | None, storage: str | None, console: Console, **reading: Any
) -> None:
    """Prints counts, running trials (how far, where), failed ones, the best score and an ETA."""
    recipe, folder = _folder(sweep, out, reading)
    database = Database(folder, storage)
    if storage is None and not folder.database.exists():
        raise UserError(f"{folder.database} is not there; if the sweep has a --storage, give it")
    with database.guard():
        trials = _trials(database, folder.study)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    last = {trial.user_attrs["point"]: trial for trial in trials}
    states = Counter(_state(trial) for trial in last.values())
    total = recipe.trials and recipe.trials * recipe.seeds
    if not recipe.space:
        total = len(recipe.assignments) * recipe.seeds
    if total:
        states["waiting"] += max(0, total - len(last))
    order = ("done", "running", "waiting", "failed", "diverged", "pruned")
    say(f"{folder.path}: " + ", ".join(f"{states[name]} {name}" for name in order if states[name]))
    remaining = states["waiting"] + 0.0  # trainings
    for name, trial in last.items():
        if trial.state == TrialState.RUNNING:
            line, part = _progress(folder, name)
            remaining += 1 - part
            say(f"running  {_label(trial)}: {line}, on {trial.user_attrs.get('host', '?')}")
    failed = [trial for trial in last.values() if _state(trial) in ("failed", "diverged")]
    for trial in failed[:SHOWN]:
        say(f"{_state(trial):<8} {_label(trial)}: {trial.user_attrs.get('reason', 'not finite')}")
    if len(failed) > SHOWN:
        say(f"... and {len(failed) - SHOWN} more")
    notes: dict[str, None] = {}
    for i, (metric, direction) in enumerate(recipe.objectives.items()):
        done = [t for t in last.values() if t.state == TrialState.COMPLETE and t.values]
        for trial in sorted(done, key=lambda t: t.values[i], reverse=direction == "maximize"):
            run_notes: dict[str, str] = {}
            with contextlib.suppress(UserError):  # a damaged file matters elsewhere
                run_notes = notes_of(folder.run(Point(trial.user_attrs["point"], {})).results or {})
            notes |= dict.fromkeys(run_notes.values())
            if not MEANINGLESS & run_notes.keys():
                say(f"best {metric} {trial.values[i]:.4g}: {_label(trial)}")
                break
    for note in notes:
        say(f"note: {note}")
    seconds = [t.user_attrs["seconds"] for t in last.values() if t.user_attrs.get("seconds")]
    if states["running"] and seconds:
        eta = remaining * sum(seconds) / len(seconds) / states["running"]
        say(f"about {duration(eta)} left with {states['running']} at once")


def _trials(database: Database, study: str) -> list[FrozenTrial]:
    storage = database.open()
    trials = []
    for name in optuna.get_all_study_names(storage):
        if name.startswith(study):
            trials += optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
    return [trial for trial in trials if "point" in trial.user_attrs]


def _state(trial: FrozenTrial) -> str:
    if "diverged" in trial.user_attrs:
        return "diverged"
    names = {TrialState.COMPLETE: "done", TrialState.FAIL: "failed"}
    return names.get(trial.state, trial.state.name.lower())


def _label(trial: FrozenTrial) -> str:
    return Point("", json.loads(trial.user_attrs["params"])).label


def _progress(folder: Folder, name: str) -> tuple[str, float]:
    """Returns how far a running trial is, as text and as a share."""
    run = folder.run(Point(name, {}))
    try:
        steps, size = run.config["trainer"]["max_steps"], run.metrics_file.stat().st_size
        with run.metrics_file.open("rb") as file:
            file.seek(max(0, size - 4096))
            step = json.loads(file.read().splitlines()[-1])["step"]
        age = time.time() - Path(run.metrics_file).stat().st_mtime
    except (OSError, UserError, ValueError, KeyError, IndexError, TypeError):
        return "starts", 0.0
    if step == steps:
        return f"step {step}/{steps}, evaluates for {age:.0f} s", 1.0
    line = f"step {step}/{steps}, {100 * step / steps:.0f} %, last logged {age:.0f} s ago"
    return line, step / steps
