"""A run of several experts: every one is a run of its own, inside the directory of the whole."""

__all__ = ["train_experts"]

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

from torch import distributed

from dtr_lightning.config.parser import Config, expert_configs
from dtr_lightning.errors import Diverged, Stopped
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.experiment.progress import Progress
from dtr_lightning.rundir.run import Run

Report = Callable[[Progress], None]
Train = Callable[[Config, Path, Report, Event], dict[str, Any]]


def train_experts(
    experiment: Experiment, directory: Run, train: Train, report: Report, stop: Event
) -> tuple[dict[str, float], Diverged | None]:
    """Trains what is missing of a run's experts, one after another, until one diverges.

    Returns their times in all, and how one diverged, at a step of the whole run. `train` is how a
    run is computed. Progress is that of the whole run. Raises Stopped between two experts when
    `stop` was set, and whatever `train` raises.
    """
    whole, steps = experiment.work(), experiment.config["trainer"]["max_steps"]
    share = experiment.training_work() // experiment.networks
    times = {"seconds": 0.0, "train_seconds": 0.0, "timed_steps": 0}
    for i, config in enumerate(expert_configs(experiment.config)):
        ranks = distributed.is_available() and distributed.is_initialized()
        if stop.is_set() and not ranks:  # they stop together, in a step
            raise Stopped

        def tell(progress: Progress, i: int = i) -> None:
            done, step = i * share + progress.done, i * steps + progress.step
            report(progress._replace(done=done, total=whole, step=step))

        expert = directory.expert(experiment.module.model.intervals[i])
        results = train(config, expert.path, tell, stop)
        times["seconds"] += results["seconds"]
        for key in ("train_seconds", "timed_steps"):
            times[key] += expert.meta.get(key, 0)
        if diverged := Diverged.of(results):
            return times, Diverged(diverged.what, i * steps + diverged.step)
    return times, None
