"""The run directory: one training, its record and its result. Only this file knows file names.

config.yaml     fully resolved, written before step 0
meta.json       command, commit, versions, device, times, status; traceback if it failed
metrics.jsonl   append-only scalars, one JSON object per logged step
events.*        TensorBoard's; here, so that it calls the run by its directory
ckpt/           last.ckpt and milestones step=N.ckpt
experts/        LOW-HIGH/, the run of each expert, if there are several
samples/        sample sheets and arrays
loggers/        of --logger: wandb/, csv/, mlflow/
profile/        traces of --trainer.profiler
artifacts/      further evaluations; evaluations/NAME/ holds samples while they are drawn
results.json    final numbers with their protocol; written last: its presence means done
"""

__all__ = [
    "LOADER",
    "NO_LOCKS",
    "OBJECTIVES",
    "Run",
    "find_runs",
    "finite",
    "steps_of",
    "to_json",
    "write_json",
]

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dtr_lightning.errors import UserError
from dtr_lightning.rundir.atomic import leftovers, write_text
from dtr_lightning.rundir.naming import (
    PRECISIONS,
    evaluation_name,
    identity,
    is_protocol,
    protocol,
)
from dtr_lightning.rundir.yaml_values import DUMPER, LOADER

# what flock raises on file systems that have no locks, as those of some clusters
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
# what a sweep may be about: numbers of results.json, None where a run could not measure one
OBJECTIVES = (
    *("score", "kid", "accuracy", "copies", "precision", "recall", "classifier_score", "loss"),
    *("parameters", "macs", "seconds", "steps_per_second"),
)


def finite(content: Any) -> Any:
    """Returns plain values with None in place of each number that is not finite."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def to_json(content: Any, indent: int | None = 1) -> str:
    """Returns plain values as strict JSON, which has null and no nan or infinity."""
    return json.dumps(finite(content), indent=indent, allow_nan=False)


def write_json(path: str | Path, content: Any, indent: int = 1) -> None:
    """Writes plain values as a file of strict JSON, whole or not at all."""
    write_text(path, to_json(content, indent) + "\n")


class Run:
    """A run directory; constructing one touches nothing on the disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.meta_file = self.path / "meta.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.results_file = self.path / "results.json"
        self.checkpoints = self.path / "ckpt"
        self.last = self.checkpoints / "last.ckpt"
        self.samples = self.path / "samples"
        self.loggers = self.path / "loggers"
        self.profile = self.path / "profile"
        self.sample_arrays = self.samples / "samples.npz"
        self.evaluations = self.path / "artifacts" / "evaluations"

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def tensorboard(self) -> Path:
        """Where TensorBoard's events are: in the run itself, in tb/ of an older one."""
        older = self.path / "tb"
        return older if older.is_dir() else self.path

    @classmethod
    def existing(cls, path: str | Path) -> "Run":
        """Returns the run at a path; UserError if there is none."""
        run = cls(path)
        if not run.config_file.is_file():
            raise UserError(f"{path} is not a run directory: it has no config.yaml")
        return run

    def expert(self, tasks: tuple[int, int]) -> "Run":
        """Returns the run, inside this one, of the expert for the tasks [low, high)."""
        return Run(self.path / "experts" / "{}-{}".format(*tasks))

    @property
    def contents(self) -> dict[str, str]:
        """Digests of the files, images and own classes that the run began with, by option."""
        return self.meta.get("contents", {})

    def check(self, config: Mapping[str, Any], contents: Mapping[str, str] | None = None) -> None:
        """Raises UserError if the directory holds another run, or something else than a run.

        contents: the digests of what the config names, as far as they are known.
        """
        if self.config_file.exists():
            known, now = self.contents, contents or {}
            there = identity(self.config, {k: known[k] for k in known.keys() & now.keys()})
            here = identity(config, {k: now[k] for k in known.keys() & now.keys()})
            # an option that is newer than the run says nothing of it
            differ = sorted(key for key in there if here.get(key) != there[key])
            if "init" in here and "init" not in there:  # no run begins twice
                differ.append("init")
            if differ:
                raise UserError(self._difference(differ[0], there, here, config))
        elif self.path.exists() and not self.path.is_dir():
            raise UserError(f"cannot write to {self.path}: it is a file; choose another --out")
        elif self.path.is_dir() and any(p.name[0] != "." for p in self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and not a run; choose another --out")

    def _difference(
        self, key: str, there: dict[str, Any], here: dict[str, Any], config: Mapping[str, Any]
    ) -> str:
        if key not in self.contents or key not in here:
            return (
                f"{self.path} holds a run of another config: {key} is {there.get(key)!r} there and "
                f"{here.get(key)!r} here; choose another --out"
            )
        axis, _, option = key.partition(".")
        if option == "source":
            what = f"the file of {config[axis]['class_path']} has changed"
        elif axis == "data":
            what = f"the images of --{key} are others (names, classes or splits differ)"
        else:
            what = f"the file of --{key} holds something else"
        return (
            f"{what} since the run at {self.path} began; restore what it was, or choose another "
            "--out for a new run"
        )

    def prepare(
        self,
        config: Mapping[str, Any],
        contents: Mapping[str, str] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Makes the directory, or makes a run that ended ready to go on, and writes its config.

        What is known of files and data is kept from the start on. Results of another length or
        protocol become an evaluation: the run is no longer done.
        """
        self.check(config, contents)
        if (results := self.results) is not None and self.finished(config, contents) is None:
            self._archive(results)
        now, known = dict(contents or {}), self.contents
        begun = {
            "planned_steps": self.planned_steps or config.get("trainer", {}).get("max_steps"),
            # an evaluation may use other files than the one before
            "contents": now | {k: v for k, v in known.items() if not (is_protocol(k) and k in now)},
            "data": self.meta.get("data") or data,
        }
        if not self.config_file.exists() or self.config != config:
            self.path.mkdir(parents=True, exist_ok=True)
            text = yaml.dump(dict(config), Dumper=DUMPER, sort_keys=False)
            write_text(self.config_file, text)
        if any(self.meta.get(key) != value for key, value in begun.items()):
            self.update_meta(**begun)
        for directory in (self.path, self.checkpoints, self.samples):
            directory.mkdir(exist_ok=True)
            for part in leftovers(directory):
                part.unlink()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the directory while a process writes to it; UserError if a living one does."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from error
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path} is in use by another process") from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                logging.getLogger(__name__).warning(
                    "note: the file system of %s has no locks (%s): nothing keeps a second command "
                    "from training the same run at the same time",
                    self.path,
                    error.strerror,
                )
            yield

    def in_use(self) -> bool:
        """Returns whether a living process of this machine holds the lock."""
        try:
            with (self.path / ".lock").open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        return False

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config."""
        with _readable(self.config_file):
            config = yaml.load(self.config_file.read_text(), Loader=LOADER)
            if not isinstance(config, dict) or not all(isinstance(k, str) for k in config):
                raise ValueError("it holds no options")
            return config

    @property
    def meta(self) -> dict[str, Any]:
        """What is known of how the run was computed; empty before it starts."""
        return _read_json(self.meta_file) or {}

    def update_meta(self, **entries: Any) -> None:
        """Adds entries to meta.json."""
        write_json(self.meta_file, self.meta | entries)

    @property
    def results(self) -> dict[str, Any] | None:
        """The final numbers, None while the run is not done."""
        results = _read_json(self.results_file)
        if not results:
            return results
        for key in OBJECTIVES:
            if not _number(value := results.get(key)):
                raise UserError(f"{self.results_file} is damaged: {key} is {value!r:.40}")
        return results

    @property
    def planned_steps(self) -> int | None:
        """The max_steps that the run began with: what follows from it, such as an interval, stays.

        None for a run that does not exist.
        """
        if "planned_steps" in self.meta or not self.config_file.exists():
            return self.meta.get("planned_steps")
        return self.config.get("trainer", {}).get("max_steps")

    def finished(
        self, config: Mapping[str, Any], contents: Mapping[str, str] | None = None
    ) -> dict[str, Any] | None:
        """Returns the final numbers if they are of a config's length and protocol, else None.

        A run that diverged is at its end at any length.
        """
        results = self.results
        if results is None or "diverged_at" in results:
            return results
        if steps_of(results) != config["trainer"]["max_steps"]:
            return None
        stated = results.get("protocol", {})
        asked = protocol(config) if config["evaluation"]["n"] else {}
        plain = {key.removeprefix("evaluation."): "float32" for key in PRECISIONS if asked}
        asked, stated = plain | asked, plain | stated
        if any(stated.get(key) != value for key, value in asked.items()):
            return None
        known = self.contents if contents else {}
        changed = any(known.get(k, v) != v for k, v in (contents or {}).items() if is_protocol(k))
        return None if changed else results

    def _archive(self, results: Mapping[str, Any]) -> None:
        """Keeps the results as an evaluation of their step."""
        step = steps_of(results)
        stated = results.get("protocol")
        self.write_evaluation(evaluation_name(stated, step) if stated else f"step={step}", results)
        self.results_file.unlink()

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Writes the final numbers: from now on the run is done."""
        write_json(self.results_file, results)

    def write_evaluation(self, name: str, results: Mapping[str, Any]) -> Path:
        """Writes an evaluation under another protocol than the run's own."""
        self.evaluations.mkdir(parents=True, exist_ok=True)
        path = self.evaluations / f"{name}.json"
        write_json(path, results)
        return path

    def evaluation(self, name: str) -> dict[str, Any] | None:
        """Returns a stored evaluation by its name, None if there is none."""
        return _read_json(self.evaluations / f"{name}.json")

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Appends one line to metrics.jsonl."""
        with self.metrics_file.open("a") as file:
            file.write(to_json(record, indent=None) + "\n")

    def cut_metrics(self, step: int, partial: tuple[str, ...] = ()) -> None:
        """Drops what was recorded after a step, and a torn last line, before the run goes on.

        Of the step itself, records of names that begin with one of `partial` go too.
        """
        records = [
            record
            for record in self.metrics()
            if record["step"] < step
            or (record["step"] == step and not any(key.startswith(partial) for key in record))
        ]
        if self.metrics_file.exists():
            lines = "".join(to_json(record, indent=None) + "\n" for record in records)
            write_text(self.metrics_file, lines)

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the records in order; a torn last line is left out."""
        if not self.metrics_file.exists():
            return []
        with _readable(self.metrics_file):
            lines = self.metrics_file.read_text().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        with _readable(self.metrics_file):
            records = [json.loads(line) for line in lines]
            if not all(isinstance(r, dict) and isinstance(r.get("step"), int) for r in records):
                raise ValueError("a line is no record with a step")
            return records


def steps_of(results: Mapping[str, Any]) -> int:
    """Returns the training steps behind results, those of each expert if there are several."""
    return results.get("steps_per_expert", results["steps"])


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what a damaged file raises into a UserError that names it."""
    try:
        yield
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # of JSON and wrong UTF-8 too
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from error


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    with _readable(path):
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        return content


def _number(value: Any) -> bool:
    """Returns whether a value is what results.json has for a number: also None, never a bool."""
    if value is None or isinstance(value, float):
        return True
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def find_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Returns all runs at or below the paths, sorted; UserError for a path that does not exist.

    A run inside a run, as an expert is, is a part of that.
    """
    run_dirs = set()
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path} is not a directory")
        for directory, below, files in os.walk(path.resolve()):
            if "config.yaml" in files:
                run_dirs.add(Path(directory))
                below.clear()
    return [Run(path) for path in sorted(run_dirs) if run_dirs.isdisjoint(path.parents)]
