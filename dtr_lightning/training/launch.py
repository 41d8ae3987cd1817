"""How the processes of a run find one another, and stop together.

They are started by Lightning itself (trainer.devices), torchrun, srun, MPI, LSF, or node by node
(NODE_RANK). Variables that a scheduler left in a shell mean nothing there.
"""

__all__ = [
    "ALONE",
    "CommonStop",
    "Place",
    "forget_launcher",
    "is_leader",
    "make_trainer",
    "place",
    "plain_trainer",
]

import atexit
import os
import signal
import sys
import time
from collections.abc import Mapping
from inspect import signature
from threading import Event, Thread
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from dtr_lightning.cli.commands import INTERRUPTED
from dtr_lightning.errors import Stopped, UserError

SPECIAL_STEPS = 0xFFFFFFF0  # from here on: SLURM's batch scripts, interactive shells and its own
PATIENCE = 5.0  # seconds of waiting for the other processes before it is said
VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
LAUNCHERS = ("SLURM_PROCID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
# PyTorch's name for telling all processes of the buffers of one, since 2.13 and before.
SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


class Srun(SLURMEnvironment):
    """The tasks that one srun started; this process is one of them. Lightning requeues nothing."""

    def __init__(self) -> None:
        # SLURMEnvironment's own asks for --ntasks-per-node, and warns wherever srun is installed
        self.auto_requeue, self.requeue_signal = False, signal.SIGUSR1

    def world_size(self) -> int:
        """Returns the number of tasks of this step."""
        return _tasks()

    @property
    def main_address(self) -> str:
        """The first node of this step, which may have fewer than the job."""
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_NODELIST"]
        return os.environ.get("MASTER_ADDR") or self.resolve_root_node_address(nodes)

    @property
    def main_port(self) -> int:
        """A port that differs between the steps of a job, which may share a node."""
        job, step = (int(os.environ.get(f"SLURM_{name}_ID", 0)) for name in ("JOB", "STEP"))
        return int(os.environ.get("MASTER_PORT") or 15_000 + (101 * job + step) % 15_000)

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Does nothing: `make_trainer` compares the numbers of processes."""


def _tasks() -> int:
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1)


def _started_by_srun(options: Mapping[str, Any]) -> bool:
    """Returns whether srun started several tasks, this process among them.

    A batch script and a shell in an allocation have SLURM's variables too, but no step or a special
    one. Where a wrapper hides the step, the processes are srun's if they were told where to meet
    and are as many as the run asks for.
    """
    variables = os.environ
    if "SLURM_PROCID" not in variables or _tasks() == 1:
        return False
    if step := variables.get("SLURM_STEP_ID"):
        shell = "SLURM_PTY_PORT" in variables and os.isatty(0)  # of srun --pty bash
        return int(step) < SPECIAL_STEPS and not shell
    asked = str(options["devices"]), options["num_nodes"]
    expected = asked[0].isdecimal() and int(asked[0]) * asked[1] == _tasks()
    informed = "MASTER_ADDR" in variables and "LOCAL_RANK" not in variables
    return expected and informed and variables.get("ENVIRONMENT") != "BATCH"


def _environment(options: Mapping[str, Any]) -> ClusterEnvironment:
    """Returns what started this process and the others of its run, for the trainer's options."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if _started_by_srun(options):
        return Srun()
    for kind in (LSFEnvironment, MPIEnvironment):
        if kind.detect():
            return kind()
    return LightningEnvironment()


def is_leader(options: Mapping[str, Any]) -> bool:
    """Returns whether this process writes the run's files, for the trainer's options.

    It is the first where a trainer is made of them, which sets Lightning's `rank_zero_only.rank`.
    """
    environment = _environment(options)
    if isinstance(environment, LightningEnvironment):
        return not environment.local_rank() and not (options["num_nodes"] > 1 and _node())
    return environment.global_rank() == 0


def _node() -> int:
    return LightningEnvironment().node_rank()


class Place(NamedTuple):
    """Which of the processes of one launcher this is, and which of those of its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


ALONE = Place()


def place() -> Place:
    """Returns where this process stands among those that torchrun, srun, ... started with it.

    For work that needs no exchange between them. UserError for a rank that cannot be.
    """
    environment = _environment({"devices": "auto", "num_nodes": 1})
    if isinstance(environment, LightningEnvironment):
        return ALONE
    rank, world = environment.global_rank(), environment.world_size()
    if not 0 <= rank < world:
        raise UserError(f"the launcher says that this is process {rank} of {world}: 0 is the first")
    return Place(rank, world, environment.local_rank())


def forget_launcher() -> None:
    """Makes this process one of its own, as a sweep's trial is, whatever started its parent."""
    for name in (*VARIABLES, *LAUNCHERS):
        os.environ.pop(name, None)


def make_trainer(options: Mapping[str, Any], stop: Event | None = None, **more: Any) -> Trainer:
    """Returns Lightning's trainer of a run's trainer options, with the ranks and signals as here.

    `stop` ends the wait for other processes. UserError where the number of processes that were
    started is not that of the options.
    """
    environment = _environment(options)
    plugins = [environment, *more.pop("plugins", ())]
    # Lightning loads any hpc_ckpt_N.ckpt that it finds in its root directory: there is none
    more |= {"plugins": plugins, "default_root_dir": os.devnull}
    trainer = plain_trainer({**options, **more})
    if isinstance(trainer.strategy, DDPStrategy):
        # masks and clusterings are functions of the step: no process has to be told of its buffers
        ddp = {"gradient_as_bucket_view": True, SYNC_BUFFERS: False}
        name = options["strategy"]
        if "unused" in name:
            ddp["find_unused_parameters"] = name.endswith("true")
        trainer = plain_trainer({**options, **more, "strategy": Ranks(stop, **ddp)})
    _compare(trainer, environment)
    # Of a single process Lightning takes the rank from any RANK in the shell
    rank_zero_only.rank = trainer.global_rank
    # Lightning's own handlers send a collective from inside a signal, which hangs the ranks
    trainer._signal_connector.register_signal_handlers = lambda: None
    # and, without them, its broadcast before every part of a batch has nothing to tell
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


def plain_trainer(options: Mapping[str, Any]) -> Trainer:
    """Returns Lightning's own trainer; UserError for options that it refuses."""
    try:
        return Trainer(**options)
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def _compare(trainer: Trainer, environment: ClusterEnvironment) -> None:
    devices, nodes = trainer.num_devices, trainer.num_nodes
    asked = f"trainer.devices x trainer.num_nodes is {devices} x {nodes}"
    if not isinstance(environment, LightningEnvironment):
        launcher = {Srun: "srun", TorchElasticEnvironment: "torchrun", MPIEnvironment: "MPI"}
        if (started := environment.world_size()) != devices * nodes:
            raise UserError(
                f"{launcher.get(type(environment), 'the scheduler')} started {started} processes, "
                f"but {asked}; start {devices * nodes}, or change these options"
            )
    elif environment.local_rank() >= devices:
        raise UserError(f"LOCAL_RANK is {environment.local_rank()}, but {asked}")
    elif trainer.world_size > 1 and environment.node_rank() >= nodes:
        raise UserError(f"NODE_RANK is {environment.node_rank()}, but {asked}")


class Ranks(DDPStrategy):
    """DDP whose wait for the others says what it waits for, and ends when asked to stop."""

    def __init__(self, stop: Event | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.stop = stop or Event()

    def setup_distributed(self) -> None:
        """Meets the other processes; Stopped, or UserError if they do not come.

        The meeting is in a thread of its own: the main one hears signals.
        """
        errors: list[BaseException] = []

        def meet() -> None:
            try:
                self.accelerator.setup_device(self.root_device)  # CUDA's is a thread's own
                super(Ranks, self).setup_distributed()
            except BaseException as error:
                errors.append(error)

        meeting = Thread(target=meet, daemon=True)
        meeting.start()
        began, said = time.monotonic(), False
        while meeting.is_alive():
            meeting.join(0.1)
            if self.stop.is_set() and meeting.is_alive():
                self.launcher.kill(signal.SIGKILL)
                atexit.register(_leave, meeting)
                raise Stopped
            if not said and time.monotonic() - began > PATIENCE and meeting.is_alive():
                said = True
                print(self._waiting(), file=sys.stderr, flush=True)
        for error in errors:
            if isinstance(error, distributed.DistError):
                raise UserError(f"{self._waiting()}: {str(error).splitlines()[0]}") from error
            raise error

    def _waiting(self) -> str:
        world = self.num_nodes * self.num_processes
        place = f"{self.cluster_environment.main_address}:{self.cluster_environment.main_port}"
        hint = ""
        if self.num_nodes > 1 and isinstance(self.cluster_environment, LightningEnvironment):
            hint = "; on the other nodes, start the same command with MASTER_ADDR, MASTER_PORT and "
            hint += "NODE_RANK=1 and so on"
        return f"process {self.global_rank} of {world} waits for the others at {place}{hint}"


def _leave(meeting: Thread) -> None:
    """Ends this process at its end: C++ aborts where Python's end finds it in a thread."""
    if meeting.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)


class CommonStop:
    """Tells all processes at the same moment that any of them was asked to stop.

    The question goes round while the next step is computed, of a training or of a sampler: nobody
    waits for it.
    """

    def __init__(self, stop: Event) -> None:
        self.stop, self.agreed = stop, False
        self.question: tuple[torch.Tensor, distributed.Work] | None = None

    def send(self, trainer: Trainer) -> None:
        """Asks all processes whether to stop; each of them must call it."""
        if trainer.world_size > 1:
            asked = torch.tensor(int(self.stop.is_set()), device=trainer.strategy.root_device)
            work = distributed.all_reduce(asked, distributed.ReduceOp.MAX, async_op=True)
            self.question = asked, work

    def hear(self, trainer: Trainer) -> None:
        """Takes the answer to the last question, if there was one."""
        if self.question is not None:
            asked, work = self.question
            self.question = None
            work.wait()
            self._agree(trainer, bool(asked))

    def ask(self, trainer: Trainer) -> bool:
        """Returns whether to stop, as the last question told, and if not, sends the next one."""
        self.hear(trainer)
        if not (stop := self.decided(trainer)):
            self.send(trainer)
        return stop

    def decided(self, trainer: Trainer) -> bool:
        """Returns whether to stop, as far as all know."""
        return self.agreed if trainer.world_size > 1 else self.stop.is_set()

    def _agree(self, trainer: Trainer, stop: bool) -> None:
        self.agreed |= stop
        if stop and trainer.strategy.launcher is not None:
            # Lightning kills this process as soon as another ends with a code other than 0
            trainer.strategy.launcher.procs.clear()
