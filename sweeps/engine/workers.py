"""Slots that each train one trial at a time in a process of its own.

The processes are forked from a server that has imported torch and lightning once, so a trial starts
in a tenth of a second. A slot has its share of the CPU cores, or one GPU.
"""

__all__ = ["Machine", "Workers", "this_machine"]

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from dtr_lightning.cli.commands import STOPS
from dtr_lightning.errors import UserError
from sweeps.engine.child import Message, Train, main, train_run
from sweeps.engine.folder import Folder
from sweeps.engine.study import Claim

LEAVE = 10.0  # seconds for a process to leave after its last message
# The last two are imported late in a training, by the digits and by the final hyperparameters.
PRELOADED = [
    "sweeps.engine.child",
    "dtr_lightning.experiment.fit",
    "sklearn.datasets",
    "tensorboard.plugins.hparams.summary_v2",
]


class Machine(NamedTuple):
    """What this command may use: CPU cores, and the names of the GPUs (none: CPU)."""

    cores: int
    gpus: tuple[str, ...]


def this_machine() -> Machine:
    """Returns what this process may use; counts GPUs without initialising one."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip():
        return Machine(cores, ())
    import torch

    with _environment({"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}):
        count = torch.cuda.device_count()
    named = visible.split(",") if visible else map(str, range(count))
    return Machine(cores, tuple(name.strip() for name in named)[:count])


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def check_numbers(number: int | None, per_gpu: int | None) -> None:
    """Raises UserError for a number of slots below 1."""
    for name, value in (("--workers", number), ("--per-gpu", per_gpu)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be a whole number from 1, not {value}")


class Workers:
    """The trials that run now; closing it kills those that still run."""

    def __init__(self, folder: Folder, train: Train = train_run, smoke: bool = False) -> None:
        self.folder, self.train, self.smoke = folder, train, smoke
        self.context = multiprocessing.get_context("forkserver")
        self.running: dict[Connection, tuple[Claim, int, BaseProcess]] = {}
        self.slots, self.threads = 1, 1
        self.gpus: list[str] = []  # CUDA_VISIBLE_DEVICES of each slot
        self.stopping = False

    def warm(self) -> None:
        """Starts the server that imports what a training needs, without waiting for it."""
        preload = (
            PRELOADED if self.train is train_run else ["sweeps.engine.child", self.train.__module__]
        )
        self.context.set_forkserver_preload(preload)
        root = str(Path(__file__).parent.parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        # The thread pools of the linear algebra libraries are sized when these are imported.
        changes = {"PYTHONPATH": path, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        with _environment(changes), _without_signals():
            multiprocessing.forkserver.ensure_running()

    def divide(
        self,
        machine: Machine,
        number: int | None,
        trials: int,
        per_gpu: int | None = None,
        devices: int = 1,
    ) -> None:
        """Makes slots: as many as asked, else one (or per_gpu) per GPU, else one per core.

        A trial on several devices gets as many GPUs in its slot. The cores are divided among the
        slots. UserError for numbers that this machine cannot give.
        """
        check_numbers(number, per_gpu)
        gpus = machine.gpus
        if gpus and devices > len(gpus):
            raise UserError(f"trainer.devices asks for {devices} GPUs a trial; here: {len(gpus)}")
        if per_gpu and not gpus:
            raise UserError("--per-gpu: no GPU here; use --workers N")
        groups = [gpus[i : i + devices] for i in range(0, len(gpus) - devices + 1, devices)]
        self.gpus = [",".join(group) for group in groups]
        number = number or len(groups) * (per_gpu or 1) or max(1, machine.cores // devices)
        self.slots = max(1, min(number, trials))
        share = max(1, machine.cores // (self.slots * devices))
        self.threads = int(os.environ.get("OMP_NUM_THREADS") or share)

    @property
    def free(self) -> bool:
        """Whether a slot waits for a trial."""
        return len(self.running) < self.slots and not self.stopping

    def start(self, claim: Claim) -> None:
        """Starts a trial in a free slot."""
        slot = min(set(range(self.slots)) - {slot for _, slot, _ in self.running.values()})
        environment = {"OMP_NUM_THREADS": str(self.threads)}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        ours, theirs = self.context.Pipe()
        point = claim.point
        log = self.folder.logs / f"{point.name}.log"
        path = self.folder.run(point).path
        arguments = (theirs, self.train, point.config, path, log, environment)
        arguments += (self.threads, self.smoke)
        process = self.context.Process(target=main, args=arguments, name=point.name)
        process.start()
        theirs.close()
        self.running[ours] = (claim, slot, process)

    def poll(self, timeout: float) -> Iterator[tuple[Claim, Message]]:
        """Yields the messages of some seconds; `lost`: a process ended without its last one."""
        ready = wait(list(self.running), timeout)
        for connection in [each for each in self.running if each in ready]:
            claim, _, process = self.running[connection]
            try:
                message = connection.recv()
            except (EOFError, OSError):
                process.join()
                code = process.exitcode or 0
                reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
                message = Message("lost", f"its process ended ({reason})")
            if message.kind != "progress":
                self._end(connection)
            yield claim, message

    def _end(self, connection: Connection) -> None:
        _, _, process = self.running.pop(connection)
        process.join(LEAVE)
        process.kill()  # if it hangs after its last message
        process.join()
        process.close()
        connection.close()

    def stop(self, trial_id: int | None = None) -> None:
        """Asks a trial to save and end; without one: all trials, and no more start."""
        self.stopping |= trial_id is None
        for connection in self._connections(trial_id):
            with contextlib.suppress(OSError):
                connection.send(Message("stop"))

    def kill(self, trial_id: int | None = None) -> None:
        """Kills a trial, or all: they lose the steps since their last checkpoint."""
        for connection in self._connections(trial_id):
            self.running[connection][2].kill()

    def _connections(self, trial_id: int | None) -> list[Connection]:
        return [
            connection
            for connection, (claim, _, _) in self.running.items()
            if trial_id in (None, claim.trial_id)
        ]

    def close(self) -> None:
        """Kills what still runs."""
        self.kill()
        for connection in list(self.running):
            self._end(connection)


@contextlib.contextmanager
def _without_signals() -> Iterator[None]:
    """Processes started here ignore the signals to stop: only the command handles them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
