"""A trace of a few early steps, for TensorBoard's profiler or Perfetto, and its operators."""

__all__ = ["Profile"]

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

from dtr_lightning.rundir.atomic import write_text
from dtr_lightning.training.callbacks import is_last_part

ROWS = 40  # operators of the table


class Profile(Callback):
    """Profiles the steps 6 to 10, as the first ones are slower; each process writes its own trace.

    Args:
        directory: where the trace and `operators.txt` go.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.profile: profile | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to count steps."""
        gpu = torch.cuda.is_available()
        if not gpu:  # else the profiler's library complains that there is none
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        self.profile = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])],
            schedule=schedule(wait=4, warmup=1, active=5, repeat=1),
            on_trace_ready=self._write if trainer.is_global_zero else self._trace,
        )
        self.profile.start()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Counts a step."""
        if self.profile and is_last_part(trainer, batch_idx):
            self.profile.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the profile of a run of fewer steps."""
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Ends the profile of a run that stops early."""
        self._stop()

    def _stop(self) -> None:
        if self.profile:
            self.profile.stop()
        self.profile = None

    def _trace(self, traced: profile) -> None:
        tensorboard_trace_handler(str(self.directory))(traced)

    def _write(self, traced: profile) -> None:
        self._trace(traced)
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = traced.key_averages().table(sort_by=order, row_limit=ROWS)
        write_text(self.directory / "operators.txt", f"{table}\n")
