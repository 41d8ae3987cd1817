"""Whether a sweep that was hurt ended as one that was not: every point once, bit for bit."""

__all__ = ["Verdict", "Watch", "judge", "repeated", "trials", "wait_for"]

import contextlib
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from dtr_lightning.rundir.run import Run, find_runs
from sweeps.engine.folder import Folder

CLOCKS = ("seconds", "steps_per_second")  # of results.json: how long it took, not what came out


class Verdict(NamedTuple):
    """Counts of a sweep's points, and one line for each that is not as it should be."""

    points: int
    lost: int  # no results, or no complete trial
    twice: int  # results written again, two complete trials, or a step recorded twice
    equal: int  # results, record and checkpoint as in the reference
    wrong: list[str]


class Watch:
    """Looks at the results of a sweep all the time: written once, they never change."""

    def __init__(self, out: Path, names: list[str]) -> None:
        self.files = {name: Run(out / name).results_file for name in names}
        self.seen: dict[str, tuple[int, int]] = {}
        self.changed: set[str] = set()
        self.ended = threading.Event()

    @property
    def done(self) -> bool:
        """Whether every point has results."""
        return len(self.seen) == len(self.files)

    def __enter__(self) -> "Watch":
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.ended.wait(0.01):
            for name, file in self.files.items():
                with contextlib.suppress(FileNotFoundError):
                    status = file.stat()
                    now = (status.st_ino, status.st_mtime_ns)
                    if self.seen.setdefault(name, now) != now:
                        self.changed.add(name)
                        self.seen[name] = now


def judge(out: Path, storage: str | None, reference: Path, changed: set[str]) -> Verdict:
    """Compares a sweep with one that was never interrupted."""
    states: dict[str, Counter[TrialState]] = {}
    for trial in trials(out, storage):
        states.setdefault(trial.user_attrs["point"], Counter())[trial.state] += 1
    names = [run.path.name for run in find_runs([reference])]
    wrong, lost, twice, equal = [], 0, 0, 0
    extra = {run.path.name for run in find_runs([out])} ^ set(names)
    wrong += [f"{name}: only in one of the two sweeps" for name in sorted(extra)]
    for name in names:
        run, count = Run(out / name), states.get(name, Counter())
        if open_ := count[TrialState.RUNNING] + count[TrialState.WAITING]:
            wrong.append(f"{name}: {open_} trials still run or wait")
        if run.results is None or not count[TrialState.COMPLETE]:
            lost += 1
            wrong.append(f"{name}: lost, with the trials {dict(count)}")
        if count[TrialState.COMPLETE] > 1 or name in changed or repeated(run.metrics()):
            twice += 1
            wrong.append(f"{name}: twice, with the trials {dict(count)}")
        differs = [what for what, same in _same(run, Run(reference / name)).items() if not same]
        equal += not differs
        wrong += [f"{name}: {what} differs" for what in differs]
    return Verdict(len(names), lost, twice, equal, wrong)


def repeated(records: list[dict[str, Any]]) -> bool:
    """Returns whether two records of a run say the same of the same step."""
    said = [(record["step"], *sorted(record)) for record in records]
    return len({*said}) < len(said)


def trials(out: Path, storage: str | None = None) -> list[FrozenTrial]:
    """Returns the trials of the one study of a sweep."""
    storage = storage or f"sqlite:///{out / 'study.db'}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    prefix = Folder(out).study
    names = [n for n in optuna.get_all_study_names(storage) if n.startswith(prefix)]
    assert len(names) == 1, f"a sweep with the studies {names}"
    return optuna.load_study(study_name=names[0], storage=storage).trials


def _same(run: Run, other: Run) -> dict[str, bool]:
    def numbers(run: Run) -> dict[str, Any] | None:
        found = run.results
        return found and {key: value for key, value in found.items() if key not in CLOCKS}

    same = {
        "results.json": numbers(run) == numbers(other),
        "config.yaml": run.config == other.config,
    }
    same["metrics.jsonl"] = run.metrics_file.read_bytes() == other.metrics_file.read_bytes()
    if other.last.exists():
        same["last.ckpt"] = run.last.exists() and equal(*map(_load, (run.last, other.last)))
    return same


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def equal(a: Any, b: Any) -> bool:
    """Returns whether two trees of containers, tensors and plain values are the same bits."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def wait_for(condition: Any, seconds: float) -> bool:
    """Returns whether something came true in time."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return bool(found)
