"""The sweep's directory: its runs, its plan and the locks of the commands that work in it.

<run>/          one run directory per point (dtr_lightning.rundir.run)
sweep.yaml      the identity of the sweep: its name in a database, metrics, base config
study.db        Optuna's study, unless --storage is another database
logs/           the output of the trials
figures/, results.csv, table.csv, table.md, table.tex    written by analysis
"""

__all__ = ["Folder", "NotBegun"]

import contextlib
import errno
import fcntl
import os
import socket
import uuid
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import yaml

from dtr_lightning.errors import UserError
from dtr_lightning.rundir.atomic import write_text
from dtr_lightning.rundir.naming import identity
from dtr_lightning.rundir.run import NO_LOCKS, Run, steps_of
from dtr_lightning.rundir.yaml_values import DUMPER, LOADER
from sweeps.engine.plan import Point, Sweep


class NotBegun(UserError):
    """A directory that holds no sweep, or none yet."""


class Folder:
    """A sweep's directory; constructing one touches nothing on the disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.sweep_file = self.path / "sweep.yaml"
        self.database = self.path / "study.db"
        self.logs = self.path / "logs"
        self.figures = self.path / "figures"
        self.table = self.path / "results.csv"
        self._owners = self.path / ".owners"
        self._databases = self.path / ".databases"

    @property
    def study(self) -> str:
        """The prefix of the names of this directory's studies, in any database."""
        return self.stored()["study"]

    def stored(self) -> dict[str, Any]:
        """Returns what sweep.yaml holds; UserError if there is none or it is damaged."""
        try:
            stored = yaml.load(self.sweep_file.read_text(), Loader=LOADER)
        except (FileNotFoundError, NotADirectoryError):
            raise NotBegun(f"{self.path} holds no sweep (yet)") from None
        except (yaml.YAMLError, ValueError, OSError) as error:
            raise UserError(f"{self.sweep_file} is damaged; choose another --out") from error
        types = {"study": str, "metric": dict, "config": dict}
        if not isinstance(stored, dict) or not all(
            isinstance(stored.get(key), kind) for key, kind in types.items()
        ):
            raise UserError(f"{self.sweep_file} is damaged; choose another --out")
        return stored

    def run(self, point: Point) -> Run:
        """Returns the run of a point, which may not exist yet."""
        return Run(self.path / point.name)

    def results(self, point: Point) -> dict[str, Any] | None:
        """Returns the final numbers of a point, None while it is not done.

        UserError if it is trained for more steps than the plan has.
        """
        run = self.run(point)
        results = run.results
        if results is None or point.config is None or "diverged_at" in results:
            return results
        if (reached := steps_of(results)) > (steps := point.config["trainer"]["max_steps"]):
            raise UserError(
                f"{run.path} is at step {reached:,} already, past trainer.max_steps {steps:,}; "
                f"give --set trainer.max_steps={reached}, or choose another --out"
            )
        return run.finished(point.config)

    def prepare(self, sweep: Sweep) -> None:
        """Makes the directory; UserError if it is another sweep's or not writable.

        More points or seeds of the same sweep are no other sweep.
        """
        try:
            for directory in (self.logs, self._owners):
                directory.mkdir(parents=True, exist_ok=True)
            with self.lock():
                self.check(sweep)
                stored = self.stored() if self.sweep_file.exists() else {}
                content = {
                    "name": sweep.name,
                    "kind": sweep.recipe.kind,
                    "study": stored.get("study") or f"{sweep.name}-{uuid.uuid4().hex[:6]}",
                    "metric": sweep.recipe.objectives,
                    "config": sweep.config,
                }
                if content != stored:  # a sweep may become longer
                    text = yaml.dump(content, Dumper=DUMPER, sort_keys=False)
                    write_text(self.sweep_file, text)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from error

    def check_place(self) -> None:
        """Raises UserError if the directory cannot be made or written to."""
        try:
            full = self.path.absolute()
            there = next(path for path in (full, *full.parents) if path.exists())
            if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
                code = errno.EACCES if there.is_dir() else errno.ENOTDIR
                raise OSError(code, os.strerror(code))
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from error

    def check(self, sweep: Sweep) -> None:
        """Raises UserError if the directory is another sweep's."""
        if not self.sweep_file.exists():
            return
        stored = self.stored()
        try:
            theirs = {key: stored.get(key) for key in ("name", "kind", "metric")}
            theirs |= identity(stored["config"])
        except (TypeError, AttributeError) as error:
            raise UserError(f"{self.sweep_file} is damaged; choose another --out") from error
        recipe = sweep.recipe
        mine = {"name": sweep.name, "kind": recipe.kind, "metric": recipe.objectives}
        mine |= identity(sweep.config)
        if differ := [key for key in mine | theirs if mine.get(key) != theirs.get(key)]:
            key = differ[0]
            raise UserError(
                f"{self.path} belongs to another sweep: {key} is {theirs.get(key)!r} there and "
                f"{mine.get(key)!r} here; choose another --out"
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Waits for the lock of the plan and holds it: one command at a time."""
        with (self.path / ".lock").open("a") as file:
            _flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def owner(self) -> Iterator[str]:
        """Yields a name for this command that is `alive` for as long as its process."""
        path = self._owners / uuid.uuid4().hex[:12]
        with path.open("w") as file:
            _flock(file, fcntl.LOCK_EX)
            file.write(socket.gethostname())
            file.flush()
            try:
                yield path.name
            finally:
                self._forget(path.name)

    def alive(self, owner: str) -> bool:
        """Returns whether a command of this machine still runs; removes the files of a dead one."""
        try:
            with (self._owners / owner).open("r") as file:
                _flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (FileNotFoundError, IsADirectoryError):
            return False
        except BlockingIOError:
            return True
        self._forget(owner)
        return False

    def _may_be_alive(self, owner: Path) -> bool:
        """Returns whether a command may run; of another machine's commands nobody here can know."""
        try:
            elsewhere = owner.read_text() != socket.gethostname()
        except (OSError, UnicodeDecodeError):
            return False
        return elsewhere or self.alive(owner.name)

    def _forget(self, owner: str) -> None:
        for name in (owner, f"{owner}.stop"):
            (self._owners / name).unlink(missing_ok=True)

    def knows(self, url: str) -> bool:
        """Returns whether the sweep was in this database before."""
        try:
            return _digest(url) in self._databases.read_text().split()
        except OSError:
            return False

    def remember(self, url: str) -> None:
        """Stores a digest of the URL of the sweep's database: the URL may hold a password."""
        if not self.knows(url):
            with self._databases.open("a") as file:
                file.write(f"{_digest(url)}\n")

    def ask_to_stop(self, save: bool) -> int:
        """Asks all commands to stop when their trials end or have saved; returns how many."""
        owners = [p for p in self._owners.glob("*") if p.suffix == "" and self._may_be_alive(p)]
        for path in owners:
            write_text(path.with_suffix(".stop"), "save" if save else "finish")
        return len(owners)

    def asked_to_stop(self, owner: str) -> str | None:
        """Returns `finish` or `save` if `--stop` asked this command to stop."""
        try:
            return (self._owners / f"{owner}.stop").read_text()
        except OSError:
            return None


def _flock(file: IO[str], operation: int) -> None:
    """Locks a file; UserError on a file system without locks."""
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise UserError(
            f"the file system of {file.name} has no locks ({error.strerror}), which a sweep needs; "
            "choose --out on another, such as a local disk"
        ) from error


def _digest(url: str) -> str:
    return sha256(url.encode()).hexdigest()[:16]
