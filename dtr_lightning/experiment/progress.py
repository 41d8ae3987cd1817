"""How far a run is, in units that make an ETA sensible."""

__all__ = ["Progress", "Reporter"]

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from lightning.pytorch import Callback, Trainer

from dtr_lightning.experiment.experiment import Experiment


class Progress(NamedTuple):
    """Where a run is: done of total in evaluations of single images by the network."""

    stage: str  # train | evaluate
    done: int
    total: int
    step: int
    loss: float | None = None
    score: float | None = None
    evaluated: int | None = None  # the step of this loss and score
    train_loss: float | None = None  # of the last step that was reported


class Reporter(Callback):
    """Counts the work done and reports it, five times a second at most."""

    def __init__(self, experiment: Experiment, report: Callable[[Progress], None]) -> None:
        self.experiment, self.report = experiment, report
        self.state = Progress("train", 0, experiment.work(), 0)
        self.due = 0.0
        self.began = time.perf_counter()

    def tell(self, **changes: Any) -> None:
        """Changes the state and reports it if it is time to; a new score always is."""
        self.state = self.state._replace(**changes)
        due = "score" in changes or self.state.done >= self.state.total
        if (now := time.monotonic()) >= self.due or due:
            self.due = now + 0.2
            self.report(self.state)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Counts what an earlier part of the run did, and starts the clock."""
        self.began = time.perf_counter()
        done = self.experiment.work(upto=trainer.global_step)
        self.tell(done=done, step=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts a step."""
        done = self.experiment.work(upto=trainer.global_step)
        # seldom, as on a GPU a look at the loss waits for the step
        if self.state.train_loss is None or time.monotonic() >= self.due:
            losses = outputs["losses"]
            self.state = self.state._replace(train_loss=(losses.mse + losses.vb).mean().item())
        self.tell(stage="train", done=done, step=trainer.global_step)

    def sampled(self, images: int) -> None:
        """Counts evaluations of single images by a sampler."""
        self.tell(stage="evaluate", done=self.state.done + images)
