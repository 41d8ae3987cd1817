"""A campaign of SIGKILLs against a sweep, at random moments and at the worst ones."""

__all__ = ["Tally", "campaign", "reference"]

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dtr_lightning.errors import UserError
from dtr_lightning.rundir.run import find_runs
from tests.faults.postgres import Server
from tests.faults.verdict import Verdict, Watch, judge
from tests.faults.victims import Command, Lab, locks, stopped, writes

OPEN = {"checkpoint": "-last.ckpt", "results": "-results.json"}  # the end of an unfinished file
AIMED = 8.0  # seconds of a command at work to wait for a moment; then any will do
MOMENTS = {
    "trial": ["random", *OPEN],
    "worker": ["random", *OPEN, "claim", "write"],
    "group": ["random", *OPEN, "claim", "write"],
}


@dataclass
class Tally:
    """What was done to the sweeps of a campaign, and what became of them."""

    victims: Counter[str] = field(default_factory=Counter)
    aimed: Counter[str] = field(default_factory=Counter)
    caught: Counter[str] = field(default_factory=Counter)
    verdicts: list[Verdict] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)  # commands that gave up by themselves
    restarts: int = 0
    refused: int = 0  # commands that began while the server was away

    @property
    def kills(self) -> int:
        """How many signals met a living process."""
        return self.victims.total()

    def count(self, name: str) -> int:
        """Returns the sum over the sweeps of one of their counts."""
        return sum(getattr(verdict, name) for verdict in self.verdicts)

    @property
    def wrong(self) -> list[str]:
        """A line for everything that is not as it should be."""
        lines = [line for verdict in self.verdicts for line in verdict.wrong]
        return lines + [f"{n} commands left: {said}" for said, n in self.left.items()]


def reference(lab: Lab) -> Path:
    """Runs the sweep without any interruption and returns its directory."""
    out = lab.folder / "reference"
    command = lab.start(out)
    if command.end() != 0:
        raise UserError(f"the sweep does not even run undisturbed: {command.said[-300:]}")
    return out


def campaign(
    lab: Lab, reference: Path, kills: int, seed: int, server: Server | None, minutes: float
) -> Tally:
    """Kills that often, over as many sweeps as it takes; each then runs to its end in peace.

    Fewer if the minutes are over before.
    """
    end = time.monotonic() + 60 * minutes
    rng, tally = random.Random(seed), Tally()
    names = [run.path.name for run in find_runs([reference])]
    tally.restarts = -server.restarts if server else 0
    while tally.kills < kills and time.monotonic() < end:
        number = len(tally.verdicts)
        out = lab.folder / f"{'postgresql' if server else 'sqlite'}-{number}"
        with Watch(out, names) as watch:
            _torment(
                lab,
                out,
                rng,
                tally,
                server,
                watch,
                lambda: tally.kills >= kills or time.monotonic() > end,
            )
            last = lab.start(out, *_options(server, "last"))
            if code := last.end():
                tally.left[f"exit {code} of the undisturbed run: {_word(last)}"] += 1
            time.sleep(0.1)
        tally.verdicts.append(judge(out, server and server.url(), reference, watch.changed))
    tally.restarts += server.restarts if server else 0
    return tally


def _options(server: Server | None, name: str) -> list[str]:
    return ["--retry-failed", *(["--storage", server.url(name)] if server else [])]


def _torment(
    lab: Lab,
    out: Path,
    rng: random.Random,
    tally: Tally,
    server: Server | None,
    watch: Watch,
    over: Callable[[], bool],
) -> None:
    """Keeps two commands at work, of one and two trials at once, and kills until all is done."""
    commands: list[Command | None] = [None, None]
    restarted = False
    while not over() and not watch.done:
        for i, command in enumerate(commands):
            if command is None or command.code is not None:
                if command is not None:
                    _note(command, tally, server)
                commands[i] = lab.start(out, *_options(server, f"c{i}"), workers=i + 1)
        victim = rng.choice(["trial", "trial", "worker", "group"])
        moment = rng.choice([m for m in MOMENTS[victim] if not (lab.light and m == "checkpoint")])
        at_work = [i for i, command in enumerate(commands) if command and command.trials()]
        i = rng.choice(at_work or [0, 1])
        caught = _strike(commands[i], f"c{i}", moment, victim, out, server, rng, watch)
        if caught is not None:
            tally.victims[victim] += 1
            tally.aimed[moment] += 1
            tally.caught[moment] += caught
        if server and not restarted and len(watch.seen) > len(watch.files) / 3:
            restarted = True
            server.restart(rng.uniform(0, 4))
    for command in filter(None, commands):
        if command.code is None:
            command.process.send_signal(signal.SIGTERM)
    for command in filter(None, commands):
        command.end(60)
        _note(command, tally, server)


def _note(command: Command, tally: Tally, server: Server | None) -> None:
    """Counts a command that left although nobody killed it and nothing was done."""
    if server and command.code == 2 and "cannot be used: connection" in _word(command):
        tally.refused += 1
    elif command.code not in (0, 1, 130, -signal.SIGKILL, -signal.SIGTERM):
        tally.left[f"exit {command.code}: {_word(command)}"] += 1


def _word(command: Command) -> str:
    return (command.said.strip().splitlines() or ["nothing said"])[-1][:200]


def _strike(
    command: Command,
    name: str,
    moment: str,
    victim: str,
    out: Path,
    server: Server | None,
    rng: random.Random,
    watch: Watch,
) -> bool | None:
    """Kills; returns whether it was in the very act, None if nothing was there to kill."""

    def doing(pid: int) -> bool:
        if moment in OPEN:
            return writes(pid, OPEN[moment])
        if server:
            return server.busy(moment, name)
        return locks(pid, out / (".lock" if moment == "claim" else "study.db-shm"))

    end, seconds = None, rng.uniform(0, 3) if moment == "random" else AIMED
    while command.code is None and not watch.done:
        trials = command.trials()
        if end is None and (trials or rng.random() < 0.002):  # now and then while it starts
            end = time.monotonic() + seconds
        if end and time.monotonic() > end:
            break
        if moment == "random" or not trials:
            time.sleep(0.01)
            continue
        for _ in range(50):
            for pid in filter(doing, trials if moment in OPEN else [command.pid]):
                with stopped(pid):
                    if doing(pid):
                        chosen = pid if victim == "trial" else None
                        return command.kill(victim, chosen) or None
            time.sleep(0.0003)
    if watch.done or command.code is not None:
        return None
    return False if command.kill(victim) else None
