"""`--dry-run`: the points of a sweep, what is done, and the cost of the rest."""

__all__ = ["preview"]

import logging
import warnings
from typing import Any

from rich.console import Console

from dtr_lightning.cli.duration import duration
from sweeps.engine.costs import Need, bytes_of_checkpoints, need_of
from sweeps.engine.folder import Folder
from sweeps.engine.plan import Sweep
from sweeps.engine.workers import Workers, this_machine


def preview(
    sweep: Sweep,
    folder: Folder,
    workers: Workers,
    number: int | None,
    console: Console,
    per_gpu: int | None = None,
) -> Need | None:
    """Prints the points or the space, what is done, and the cost of the rest.

    The time follows from a measured training step, or from `steps_per_second` of the sweep. Returns
    what the rest takes if the sweep states its images, and so the machine that it is meant for.
    """

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    folder.check(sweep)
    states, published = [], sweep.recipe.published
    for point in sweep.points:
        run = folder.run(point)
        done = folder.results(point) is not None
        states.append("done" if done else "running" if run.in_use() else "waiting")
        numbers = published.text(point.setting_label) if published else ""
        say(f"{states[-1]:<8} {point.label}" + f"    published: {numbers}" * bool(numbers))
    waiting = [
        point.config
        for point, state in zip(sweep.points, states, strict=True)
        if state == "waiting" and point.config is not None
    ]
    if states:
        done = f"{states.count('done')} of {len(states)} points done, {len(waiting)} waiting"
        say(f"{done}, in {folder.path}")
    if published:
        say(f"published: {published.table}")
    elif sweep.recipe.images:  # of a paper
        say("published: no numbers that are known to us")
    if sweep.recipe.also:
        say(f"runs of the same table: {', '.join(sweep.recipe.also)}")
    for key, axis in sweep.recipe.space.items():
        say(f"{key}: {axis}")
    if sweep.recipe.space:
        seeds, trials = sweep.recipe.seeds, sweep.recipe.trials
        budget = f"{trials} settings" if trials else f"{sweep.recipe.hours:g} hours of training"
        say(f"{sweep.recipe.kind}: {budget}, {seeds} {'seeds' if seeds > 1 else 'seed'} of each")
        waiting = [sweep.config] * ((trials or 0) * seeds)
    if waiting and sweep.recipe.images:
        need = need_of(sweep, waiting)
        for line in need.lines(sweep):
            say(line)
        return need
    if waiting:
        workers.divide(this_machine(), number, len(waiting), per_gpu, sweep.devices)
        for line in _cost(sweep, waiting, workers):
            say(line)
    return None


def _cost(sweep: Sweep, configs: list[dict[str, Any]], workers: Workers) -> list[str]:
    import torch

    from dtr_lightning.experiment.experiment import Experiment
    from dtr_lightning.experiment.fit import seconds_per_step

    experiment = Experiment(sweep.config)
    parameters = experiment.parameters() // experiment.networks
    evaluated = experiment.work() / experiment.training_work()
    rate, source = sweep.recipe.steps_per_second, "stated in the sweep"
    if rate is None:
        torch.set_num_threads(workers.threads)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        with warnings.catch_warnings(action="ignore"):
            rate, source = 1 / seconds_per_step(sweep.config), "measured here"
    steps = checkpoints = 0
    for config in configs:
        networks = config.get("experts", 1)
        networks = networks if isinstance(networks, int) else len(networks)
        steps += config["trainer"]["max_steps"] * networks
        checkpoints += bytes_of_checkpoints(config, parameters * networks)
    hours = steps / rate * evaluated / 3600
    unit = "GPU-hours" if workers.gpus or source != "measured here" else "hours of a worker"
    return [
        f"about {duration(3600 * hours / workers.slots)} with {workers.slots} workers of "
        f"{workers.threads} threads: {rate:.3g} steps/s, {source}, and {evaluated - 1:.0%} more "
        f"for sampling; {hours:.3g} {unit} in all, and some seconds a run to start and to score",
        f"about {checkpoints / 1e9:.2g} GB of checkpoints in {len(configs)} runs",
    ]
