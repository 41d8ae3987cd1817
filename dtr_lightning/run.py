"""The run directory: one training, its record and its result. Only this file knows file names.

config.yaml     fully resolved, written before step 0
meta.json       command, commit, versions, device, times, status; traceback if it failed
metrics.jsonl   append-only scalars, one JSON object per logged step
tb/             TensorBoard events
ckpt/           last.ckpt and milestones step=N.ckpt
experts/        LOW-HIGH/, the run of each expert, if there are several
samples/        sample sheets and arrays
artifacts/      further evaluations
results.json    final numbers with their protocol; written last: its presence means done
"""

__all__ = ["LOADER", "OBJECTIVES", "Run", "find_runs"]

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dtr_lightning.errors import UserError
from dtr_lightning.naming import science

# what a sweep may be about: numbers of results.json, None where a run could not measure one
OBJECTIVES = (
    *("score", "kid", "accuracy", "copies", "precision", "recall", "classifier_score", "loss"),
    *("parameters", "macs", "seconds", "steps_per_second"),
)


class LOADER(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # libyaml's is 7 times faster
    """YAML's plain values; a key that is there twice is an error, and not the last one's value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns a mapping whose keys are all there."""
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, key in enumerate(keys):
            if key in keys[:i] and key[1] != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key[1]!r} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _write_atomically(path: Path, text: str) -> None:
    """Writes beside, flushes to the disk and renames: a reader sees the old file or the new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class Run:
    """A run directory; constructing one touches nothing on the disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.meta_file = self.path / "meta.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.results_file = self.path / "results.json"
        self.tensorboard = self.path / "tb"
        self.checkpoints = self.path / "ckpt"
        self.last = self.checkpoints / "last.ckpt"
        self.samples = self.path / "samples"
        self.sample_arrays = self.samples / "samples.npz"
        self.evaluations = self.path / "artifacts" / "evaluations"

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

    def check(self, config: Mapping[str, Any]) -> None:
        """Raises UserError if the directory holds another config, or something else than a run."""
        if self.config_file.exists():
            mine, theirs = science(config), science(self.config)
            differ = sorted(k for k in mine | theirs if mine.get(k) != theirs.get(k))
            if differ:
                key = differ[0]
                raise UserError(
                    f"{self.path} holds a run of another config: {key} is {theirs.get(key)!r} "
                    f"there and {mine.get(key)!r} here; choose another --out"
                )
        elif self.path.exists() and not self.path.is_dir():
            raise UserError(f"cannot write to {self.path}: it is a file; choose another --out")
        elif self.path.is_dir() and any(p.name[0] != "." for p in self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and not a run; choose another --out")

    def prepare(self, config: Mapping[str, Any]) -> None:
        """Makes the directory and writes its config, once."""
        self.check(config)
        if not self.config_file.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            _write_atomically(self.config_file, yaml.safe_dump(dict(config), sort_keys=False))
        for part in self.path.glob(".*.*.[0-9]*"):  # of a process that was killed while it wrote
            part.unlink()
        for directory in (self.checkpoints, self.samples, self.tensorboard):
            directory.mkdir(exist_ok=True)

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
        _write_atomically(self.meta_file, json.dumps(self.meta | entries, indent=1))

    @property
    def results(self) -> dict[str, Any] | None:
        """The final numbers, None while the run is not done."""
        results = _read_json(self.results_file)
        for key in OBJECTIVES if results else ():
            if not _number(value := results.get(key)):
                raise UserError(f"{self.results_file} is damaged: {key} is {value!r:.40}")
        return results

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Writes the final numbers: from now on the run is done."""
        _write_atomically(self.results_file, json.dumps(results, indent=1))

    def write_evaluation(self, name: str, results: Mapping[str, Any]) -> Path:
        """Writes an evaluation under another protocol than the run's own."""
        self.evaluations.mkdir(parents=True, exist_ok=True)
        path = self.evaluations / f"{name}.json"
        _write_atomically(path, json.dumps(results, indent=1))
        return path

    def evaluation(self, name: str) -> dict[str, Any] | None:
        """Returns a stored evaluation by its name, None if there is none."""
        return _read_json(self.evaluations / f"{name}.json")

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Appends one line to metrics.jsonl."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def cut_metrics(self, step: int) -> None:
        """Drops what was recorded after a step, and a torn last line, before the run goes on."""
        kept = [record for record in self.metrics() if record["step"] <= step]
        if self.metrics_file.exists():
            lines = "".join(json.dumps(record) + "\n" for record in kept)
            _write_atomically(self.metrics_file, lines)

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
    found = set()
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path} is not a directory")
        for directory, below, files in os.walk(path.resolve()):
            if "config.yaml" in files:
                found.add(Path(directory))
                below.clear()
    return [Run(path) for path in sorted(found) if found.isdisjoint(path.parents)]
