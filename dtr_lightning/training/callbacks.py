"""Lightning callbacks: the record, evaluation on the way, checkpoints.

Each acts at the end of a step, after the average of the weights and in this order, so that a
checkpoint of step s comes after everything that was recorded of s: a run killed at any moment and
started again repeats nothing in its record.
"""

__all__ = ["Checkpoints", "JSONLLogger", "MetricLogger", "PeriodicEvaluation"]

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from dtr_lightning.errors import Diverged, Stopped
from dtr_lightning.rundir.atomic import replacing
from dtr_lightning.rundir.run import Run
from dtr_lightning.training.launch import CommonStop
from dtr_lightning.training.module import Losses


class JSONLLogger(Logger):
    """Appends scalars to the run's metrics.jsonl; TensorBoard is a view, this is the record."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    name = "metrics"
    version = ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends one record; of several processes, the first does."""
        self.run.append_metrics({"step": step, **metrics})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: config.yaml holds them."""


def is_last_part(trainer: Trainer, batch_idx: int) -> bool:
    """Returns whether a step ends with this part of its batch: with gradients accumulated."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def loss_per_timestep_bin(losses: Losses, tasks: int, parts: int = 8) -> Tensor:
    """Returns (parts + 1, 4): sums of loss, mse, vb and the count per part of time, and of all."""
    t, mse, vb = (part.cpu() for part in losses)
    values = torch.stack([mse + vb, mse, vb, torch.ones_like(mse)], dim=1).double()  # (N, 4)
    sums = torch.zeros(parts + 1, 4, dtype=torch.float64)
    sums.index_add_(0, (t * parts // tasks).long(), values)
    sums[-1] = values.sum(0)
    return sums


def all_reduce_sum(trainer: Trainer, sums: Tensor) -> Tensor:
    """Returns sums that were added up over all processes."""
    if trainer.world_size == 1:
        return sums
    return trainer.strategy.reduce(sums.to(trainer.strategy.root_device), reduce_op="sum").cpu()


def scalars(sums: Tensor, tasks: int, name: str) -> dict[str, float]:
    """Returns what is logged of such sums: the means over all and per part of the timeline."""
    parts = len(sums) - 1
    loss, mse, vb, _ = (sums[-1] / sums[-1, 3]).tolist()
    logged = {f"{name}/loss": loss, f"{name}/mse": mse, f"{name}/vb": vb}
    for part, (total, _, _, count) in enumerate(sums[:-1].tolist()):
        if count:
            first, last = -(-part * tasks // parts), -(-(part + 1) * tasks // parts) - 1
            logged[f"{name}_tasks/t{first:03d}-{last:03d}"] = total / count
    return logged


class MetricLogger(Callback):
    """Logs training losses since the last time, per task too, every n steps and at the last step.

    The window and the gradient norm are part of a checkpoint, so a resumed run logs the same
    numbers. Speed goes to TensorBoard alone: the record holds what a repetition would reproduce.
    """

    def __init__(self, every: int, run: Run) -> None:
        self.every, self.run = every, run
        self.window: list[Losses] = []
        self.grad_norm = 0.0
        self.last = (0, 0.0)  # step, seconds

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keeps the trainer: a checkpoint of one process holds the windows of all."""
        self.trainer = trainer

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, and drops records of steps that will be repeated."""
        self.last = (trainer.global_step, time.perf_counter())
        if trainer.is_global_zero:
            # losses of a window that is not full were those of the end of a shorter run
            partial = ("train/", "train_tasks/") if self.window else ()
            self.run.cut_metrics(trainer.global_step, partial)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Takes the norm of the gradient at the steps that are logged."""
        if self._due(trainer, trainer.global_step + 1):
            grads = [p.grad for p in pl_module.model.parameters() if p.grad is not None]
            self.grad_norm = torch.nn.utils.get_total_norm(grads).item()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the step to the window, and logs the window when it is full.

        Raises Diverged, on all ranks alike, if the loss of the window is not finite.
        """
        self.window.append(outputs["losses"])
        if not is_last_part(trainer, batch_idx):
            return
        step, tasks = trainer.global_step, pl_module.diffusion.T
        if not self._due(trainer, step):
            return
        sums = loss_per_timestep_bin(Losses(*map(torch.cat, zip(*self.window, strict=True))), tasks)
        if step % self.every == 0:  # else the run ends here, unless it is trained longer
            self.window.clear()
        sums = all_reduce_sum(trainer, sums)
        logged = scalars(sums, tasks, "train") | {"train/grad_norm": self.grad_norm}
        before, then = self.last
        self.last = now = (step, time.perf_counter())
        for logger in trainer.loggers:
            logger.log_metrics(logged, step)
            if not isinstance(logger, JSONLLogger):
                speed = (step - before) / (now[1] - then)
                logger.log_metrics({"train/steps_per_second": speed}, step)
        if not math.isfinite(logged["train/loss"]):
            raise Diverged("the loss is not finite", step)

    def _due(self, trainer: Trainer, step: int) -> bool:
        return step % self.every == 0 or step == trainer.max_steps

    def state_dict(self) -> dict[str, Any]:
        """Returns the window as three tensors (processes, n)."""
        window = map(torch.cat, zip(*self.window, strict=True)) if self.window else ()
        several = self.trainer.world_size > 1
        gathered = (gather_all_tensors(part) if several else [part] for part in window)
        return {"window": [torch.stack(parts).cpu() for parts in gathered]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes this process's part of the window back; of another number of processes, a share."""
        mine = slice(self.trainer.global_rank, None, self.trainer.world_size)
        window = [torch.atleast_2d(part)[mine].flatten() for part in state_dict["window"]]
        device = self.trainer.strategy.root_device
        self.window = [Losses(*(part.to(device) for part in window))] if window else []


class PeriodicEvaluation(Callback):
    """Evaluates the average weights every n steps; `evaluate` does it and returns the scalars.

    Where it raises Stopped, the checkpoint of that step says that its evaluation is missing, and
    the resumed run makes up for it.
    """

    def __init__(
        self, run: Run, every: int, evaluate: Callable[[Trainer], Mapping[str, float]]
    ) -> None:
        self.run, self.every, self.evaluate = run, every, evaluate
        self.seconds = 0.0
        self.missing = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes up for an evaluation that was stopped, before the next step."""
        self.make_up(trainer)
        self.seconds = 0.0  # the clock of the training starts after it

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluates and logs."""
        if (
            is_last_part(trainer, batch_idx)
            and self.every
            and trainer.global_step % self.every == 0
        ):
            self.missing = True
            with contextlib.suppress(Stopped):  # Checkpoints saves the step, and stops
                self._evaluate(trainer)

    def make_up(self, trainer: Trainer) -> None:
        """Evaluates and logs what the checkpoint says is missing; raises Stopped if asked to.

        It may be in the record: the checkpoint stays as it is until the next one.
        """
        if self.missing:
            step = trainer.global_step
            records = self.run.metrics() if trainer.is_global_zero else ()
            known = any(record["step"] == step and "val/loss" in record for record in records)
            if not trainer.strategy.broadcast(known):
                self._evaluate(trainer)
            self.missing = False

    def _evaluate(self, trainer: Trainer) -> None:
        began = time.perf_counter()
        try:
            logged = dict(self.evaluate(trainer))
        finally:
            self.seconds += time.perf_counter() - began
        self.missing = False
        for logger in trainer.loggers:
            logger.log_metrics(logged, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Returns whether the evaluation of this step is missing."""
        return {"missing": self.missing}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Knows again whether one is missing."""
        self.missing = state_dict["missing"]


class Checkpoints(Checkpoint):
    """Saves last.ckpt every n steps, at the end and when asked to stop; milestones are kept."""

    def __init__(
        self,
        run: Run,
        every: int,
        milestones: int,
        stop: CommonStop,
        saved: Callable[[int], None],
    ) -> None:
        self.run, self.every, self.milestones = run, every, milestones
        self.stop, self.saved = stop, saved

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves if this is a step to save; raises Stopped if asked to stop."""
        if not is_last_part(trainer, batch_idx):
            return
        step = trainer.global_step
        self.stop.hear(trainer)
        stop = self.stop.decided(trainer)
        milestone = self.milestones and step % self.milestones == 0
        if stop or milestone or step % self.every == 0 or step >= trainer.max_steps:
            trainer.save_checkpoint(self.run.last)
            if trainer.is_global_zero:
                self.saved(step)
        if milestone and trainer.is_global_zero:
            with replacing(self.run.checkpoints / f"step={step}.ckpt") as part:
                try:
                    os.link(self.run.last, part)  # the next last.ckpt is another file
                except OSError:  # a file system without links
                    shutil.copyfile(self.run.last, part)
        if step < trainer.max_steps:
            if stop:
                raise Stopped
            self.stop.send(trainer)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside, flushes it to the disk and renames: the last good one stays."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Saves atomically; on failure, such as a full disk, the old file is untouched."""
        try:
            with replacing(path) as part, part.open("wb") as file:
                torch.save(checkpoint, file)
        except BaseException as error:
            # torch's writer hides the reason, such as a full disk, behind an error of its own
            reason: BaseException | None = error
            while reason is not None and not isinstance(reason, OSError):
                reason = reason.__cause__ or reason.__context__
            raise (reason or error) from None
