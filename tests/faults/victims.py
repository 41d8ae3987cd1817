"""A sweep's command as a victim: its processes, what each is doing now, and their deaths.

Linux only: processes, open files and locks are read from /proc.
"""

__all__ = ["Command", "Lab", "locks", "stopped", "writes"]

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from dtr_lightning.rundir.atomic import write_text

ROOT = Path(__file__).resolve().parent.parent.parent
PER_ALPHA = 6  # points: two betas, three seeds
TINY = {
    "model.hidden_size": 16,
    "model.depth": 1,
    "model.num_heads": 2,
    "data.batch_size": 8,
    "trainer.max_steps": 60,
    "trainer.log_every_n_steps": 10,
    "checkpoint.every": 10,
    "evaluation.n": 16,
    "evaluation.every": 0,
    "sampler.steps": 2,
}
LIGHT = {"pace": 0.03}


class Command:
    """A sweep's command in a session of its own, and the trials that it started."""

    all: ClassVar[list["Command"]] = []

    def __init__(self, arguments: list[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.process.pid
        self.all.append(self)

    @property
    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self.process.poll()

    @property
    def said(self) -> str:
        """What it printed."""
        return self.log.read_text()

    def trials(self) -> list[int]:
        """Returns the processes of its trials: the children of its fork server."""
        parents = _parents()
        below = {pid for pid, parent in parents.items() if parent == self.pid}
        return [pid for pid, parent in parents.items() if parent in below]

    def kill(self, victim: str, trial: int | None = None) -> bool:
        """Sends SIGKILL to a trial, the command alone (worker) or its group; False if none is."""
        try:
            if victim == "trial":
                os.kill(trial or self.trials()[0], signal.SIGKILL)
            else:
                (os.killpg if victim == "group" else os.kill)(self.pid, signal.SIGKILL)
                self.process.wait()
        except (ProcessLookupError, IndexError):
            return False
        return True

    def end(self, seconds: float = 300.0) -> int:
        """Waits for its end and returns the exit code; a command that stays is killed: -9."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
        return self.process.wait()


@dataclass(frozen=True)
class Lab:
    """Where the faults happen: a sweep of tiny trainings, and how its command is called.

    A light one has the tests' stand-in for a training, which takes milliseconds.
    """

    folder: Path
    points: int
    light: bool = False

    @property
    def sweep(self) -> Path:
        """The YAML of the sweep, of at least as many points as asked."""
        alphas = [1 + i / 2 for i in range(-(-self.points // PER_ALPHA))]
        return self.write(
            "tiny", grid=[{"router": "DTR", "router.alpha": alphas, "router.beta": [0.6, 0.8]}]
        )

    def write(self, name: str, **content: Any) -> Path:
        """Writes a sweep of tiny trainings and returns its path."""
        base = {"config": str(ROOT / "configs" / "digits.yaml"), "seeds": 3}
        path = self.folder / f"{name}.yaml"
        text = yaml.safe_dump(base | {"smoke": LIGHT if self.light else TINY} | content)
        write_text(path, text)  # a command that starts may be reading it
        return path

    def start(
        self,
        out: Path,
        *more: str,
        workers: int = 2,
        sweep: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Command:
        """Starts `python sweep.py` on a directory; a trial has one thread: bits can be equal."""
        program = ["-m", "tests.faults.light"] if self.light else [str(ROOT / "sweep.py")]
        options = ["--smoke", "--out", str(out), "--workers", str(workers), *more]
        logs = self.folder / "said"
        logs.mkdir(exist_ok=True)
        log = logs / f"{len(list(logs.iterdir())):04d}.log"
        own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **(environment or {})}
        return Command([*program, str(sweep or self.sweep), *options], log, own)


def _parents() -> dict[int, int]:
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            found[int(entry)] = int(_stat(int(entry))[1])
    return found


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def writes(pid: int, name: str) -> bool:
    """Returns whether a process has a file open whose path contains a name."""
    with contextlib.suppress(OSError):
        for file in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if name in os.readlink(f"/proc/{pid}/fd/{file}"):
                    return True
    return False


def locks(pid: int, path: Path) -> bool:
    """Returns whether a process holds a file's lock for writing; SQLite's are on study.db-shm."""
    try:
        inode = path.stat().st_ino
    except OSError:
        return False
    for line in Path("/proc/locks").read_text().splitlines():
        _, first, *rest = line.split()
        if first == "->":  # waits for it
            continue
        _, kind, holder, file = rest[:4]
        if kind == "WRITE" and int(holder) == pid and int(file.rsplit(":", 1)[1]) == inode:
            return True
    return False


@contextlib.contextmanager
def stopped(pid: int, seconds: float = 1.0) -> Any:
    """Holds a process still, so that what it is doing can be seen before it is killed."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    try:
        end = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            while _stat(pid)[0] not in "TZX" and time.monotonic() < end:
                time.sleep(0.0005)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
