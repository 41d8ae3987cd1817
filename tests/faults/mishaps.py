"""Faults other than SIGKILLs: starts at one instant, clocks, locks, a full disk, a mixed-up --out.

Each function makes a fault and returns one line for everything that was not as it should be.
"""

__all__ = ["MISHAPS", "clocks", "eight_starts", "two_sweeps"]

import contextlib
import hashlib
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from optuna.trial import TrialState

from dtr_lightning.rundir.run import find_runs
from tests.faults.verdict import judge, trials, wait_for
from tests.faults.victims import Command, Lab

Mishap = Callable[[Lab, Path], list[str]]
HOUR = 3600.0
STARTS = 8
GRACE = 4.0  # seconds; five minutes outside of this
LOCKED = 20.0  # seconds


def _codes(commands: list[Command], expected: int = 0, seconds: float = 300.0) -> list[str]:
    codes = [command.end(seconds) for command in commands]
    return [
        f"exit {code}: {(command.said.strip() or 'nothing said').splitlines()[-1]}"
        for code, command in zip(codes, commands, strict=True)
        if code != expected
    ]


def _counted(out: Path, starts: int = 1) -> list[str]:
    """Returns what is wrong with the light runs of a sweep, each begun so often and ended once."""
    wrong = []
    for run in find_runs([out]):
        found = [len((run.path / name).read_text()) for name in ("starts", "ends")]
        if found != [starts, 1]:
            wrong.append(f"{run.path.name}: starts, ends {found}")
    return wrong


def eight_starts(lab: Lab, _: Path, number: int = 0) -> list[str]:
    """Eight commands begin at one instant on an empty directory."""
    out = lab.folder / f"starts-{number}"
    commands = [lab.start(out, environment={"FAULT_BARRIER": "1"}) for _ in range(STARTS)]
    _go(commands)
    wrong = _codes(commands) + _counted(out)
    found = [trial.user_attrs["point"] for trial in trials(out)]
    names = {run.path.name for run in find_runs([out])}
    if sorted(found) != sorted(names) or len(names) < lab.points:
        wrong.append(f"{len(found)} trials of {len(set(found))} points, {len(names)} runs")
    return wrong + [t.state.name for t in trials(out) if t.state != TrialState.COMPLETE]


def two_sweeps(lab: Lab, reference: Path) -> list[str]:
    """Another sweep is told to use a directory: one line, exit code 2, nothing changed."""
    before, wrong = _contents(reference), []
    for name, change in (("other", {}), ("tiny", {"metric": "loss"})):
        folder = lab.folder / f"{name}-{len(change)}"
        folder.mkdir()
        grid = [{"router": "DTR", "router.alpha": [9]}]
        path = Lab(folder, lab.points, lab.light).write(name, grid=grid, **change)
        command = lab.start(reference, sweep=path)
        wrong += _codes([command], expected=2)
        *_, last = command.said.splitlines()  # after "loading ..." and what --smoke is
        if "belongs to another sweep" not in last or command.said.count("error") != 1:
            wrong.append(f"it said: {command.said.strip()[-200:]}")
    return wrong + (["the directory changed"] if _contents(reference) != before else [])


def _contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def two_at_once(lab: Lab, _: Path) -> list[str]:
    """Two different sweeps begin at one instant on an empty directory: one has it, one is told."""
    out = lab.folder / "both"
    paths = [
        lab.write(name, grid=[{"router": "DTR", "router.alpha": [1, 2]}]) for name in ("a", "b")
    ]
    commands = [lab.start(out, sweep=path, environment={"FAULT_BARRIER": "1"}) for path in paths]
    _go(commands)
    codes = [command.end() for command in commands]
    told = [command.said for command in commands if command.code == 2]
    if sorted(codes) != [0, 2] or "belongs to another sweep" not in told[0]:
        return [f"exit codes {codes}", *told]
    return _counted(out)


def _go(commands: list[Command]) -> None:
    """Lets commands begin that wait at the barrier."""
    wait_for(lambda: all("ready" in command.said for command in commands), 120)
    for command in commands:
        command.process.stdin.close()


def clocks(lab: Lab, _: Path) -> list[str]:
    """Clocks of two hosts jump apart by an hour: a living trial stays, a dead one is taken over."""
    path = lab.write("one", grid=[{"router": "NoRouting"}], seeds=1, smoke={"pace": 0.9})
    wrong = []
    for sign in (1, -1):
        outs = [lab.folder / f"clocks-{what}-{sign}" for what in ("living", "dead")]
        pairs = [[_on_host(lab, path, out, "one", -sign * HOUR)] for out in outs]
        for out, pair in zip(outs, pairs, strict=True):
            wait_for(lambda out=out: out.is_dir() and find_runs([out]), 60)
            pair.append(_on_host(lab, path, out, "two", sign * HOUR))
        living, dead = pairs
        wait_for(lambda out=outs[1]: len(list((out / ".owners").iterdir())) == 2, 60)
        dead[0].kill("group")
        died, run = time.monotonic(), find_runs(outs[1:])[0]
        taken = wait_for(lambda run=run: len((run.path / "starts").read_text()) == 2, 60)
        waited = time.monotonic() - died
        if not taken or waited < GRACE / 2:
            wrong.append(f"{2 * sign:+d} h, dead: taken over {taken}, after {waited:.1f} s")
        lines = _codes([*living, dead[1]]) + _counted(outs[0]) + _counted(outs[1], starts=2)
        wrong += [f"{2 * sign:+d} h: {line}" for line in lines]
    return wrong


def _on_host(lab: Lab, path: Path, out: Path, host: str, jump: float) -> Command:
    own = {"FAULT_HOST": host, "FAULT_CLOCK": str(jump), "FAULT_GRACE": str(GRACE)}
    return lab.start(out, workers=1, sweep=path, environment=own)


def raises(lab: Lab, _: Path) -> list[str]:
    """One point raises: its reason is told, the others are trained."""
    out = lab.folder / "raises"
    path = lab.write("raises", grid=[{"router": ["Raises", "NoRouting", "DTR"]}], seeds=1)
    command = lab.start(out, sweep=path)
    wrong = _codes([command], expected=1)
    states = sorted(trial.state.name for trial in trials(out))
    if states != ["COMPLETE", "COMPLETE", "FAIL"] or "no such luck" not in command.said:
        wrong.append(f"trials {states}; it said {command.said[-200:]}")
    return wrong


def locked(lab: Lab, _: Path) -> list[str]:
    """Another process holds SQLite's lock: a command at work and one that starts wait and go on."""
    out = lab.folder / "locked"
    commands = [lab.start(out)]
    wait_for(lambda: out.is_dir() and len(find_runs([out])) > 3, 60)
    with contextlib.closing(sqlite3.connect(out / "study.db", timeout=60)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        commands.append(lab.start(out))
        time.sleep(LOCKED)
        connection.rollback()
    return _codes(commands) + _counted(out)


def full_disk(lab: Lab, reference: Path) -> list[str] | None:
    """The disk is full in the middle and has room again; None where nothing can be mounted."""
    disk = lab.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    try:
        out, filler = disk / "out", disk / "filler"
        command = lab.start(out, "--retry-failed")
        wait_for(lambda: out.is_dir() and len(find_runs([out])) > 5, 120)
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        time.sleep(10)
        filler.unlink()
        first = command.end()
        again = lab.start(out, "--retry-failed")
        wrong = [] if first in (0, 1, 2) else [f"exit {first}: {command.said[-200:]}"]
        if "Traceback" in command.said or not ("full" in command.said or "space" in command.said):
            wrong.append(f"of the full disk it said: {command.said.strip()[-200:]}")
        return wrong + _codes([again]) + judge(out, None, reference, set()).wrong
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


MISHAPS: dict[str, tuple[Mishap, bool, str]] = {
    "another sweep's directory": (two_sweeps, False, "one refusal, nothing changed"),
    "two sweeps at one instant": (two_at_once, True, "one has the directory, one is refused"),
    "clocks jump by an hour": (clocks, True, "the living stay, the dead are taken over"),
    "a trial raises": (raises, True, "told, and the others end"),
    "SQLite locked for 20 s": (locked, True, "all wait and go on"),
    "disk full": (full_disk, False, "the same command goes on, bit-equal"),
}  # fault: what makes it, whether by light trainings, what is to hold
