"""What the trainings of a sweep take on the machine that it states: hours, disk and memory.

Nothing is trained or read for it: networks are counted on the meta device, and images that are not
there yet are replaced by their sizes.
"""

__all__ = ["Need", "bytes_of_checkpoints", "memory_of_step", "need_of", "without_images"]

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sweeps.engine.recipe import Recipe

if TYPE_CHECKING:
    from dtr_lightning.experiment.experiment import Experiment
    from sweeps.engine.plan import Sweep

COPIES = 4  # of the weights in a checkpoint: raw, average, and two moments of the optimiser
FLOAT = 4  # bytes
GIB, GB = 2**30, 1e9
PIXELS = "pixels"  # of `images`: no option of NoImages


def without_images(recipe: Recipe) -> Recipe:
    """Returns the recipe with `images`, the sizes, in place of data that are not there."""
    if recipe.images is None:
        return recipe
    from dtr_lightning.config.parser import resolve

    choice = resolve(recipe.config, recipe.overrides)["data"]
    if Path(str(choice["init_args"].get("root", ""))).exists():
        return recipe
    sizes = {f"data.{key}": value for key, value in recipe.images.items() if key != PIXELS}
    return replace(recipe, overrides=recipe.overrides | {"data": "NoImages"} | sizes)


class Need(NamedTuple):
    """What trainings take: GPU-hours, bytes of checkpoints and of samples, and of a GPU's memory.

    sampling is the part of the GPU-hours that goes into scores. memory is None where a person's own
    class cannot be counted. has_images is whether the images are there.
    """

    trainings: int
    hours: float
    sampling: float
    checkpoints: int
    samples: int
    memory: int | None
    parameters: tuple[int, ...]
    has_images: bool = True

    @classmethod
    def total(cls, needs: Iterable["Need"]) -> "Need":
        """Returns what several take, one after the other."""
        needs = list(needs)
        memories = [need.memory for need in needs if need.memory is not None]
        return cls(
            trainings=sum(need.trainings for need in needs),
            hours=sum(need.hours for need in needs),
            sampling=sum(need.sampling for need in needs),
            checkpoints=sum(need.checkpoints for need in needs),
            samples=max(need.samples for need in needs),
            memory=max(memories) if len(memories) == len(needs) else None,
            parameters=tuple(sorted({n for need in needs for n in need.parameters})),
            has_images=all(need.has_images for need in needs),
        )

    def lines(self, sweep: "Sweep") -> list[str]:
        """Returns what `--dry-run` says of them."""
        recipe = sweep.recipe
        sizes = ", ".join(f"{n / 1e6:.2f} M" for n in self.parameters)
        config = (sweep.points[0].config if sweep.points else None) or sweep.config
        precision = config["trainer"]["precision"] or "32-true"
        memory = "memory unknown: a class of yours looks at values"
        if self.memory is not None:
            memory = (
                f"about {self.memory / GIB:.1f} GiB of each GPU with {precision}, and 2 GiB for "
                "what is held for an instant"
            )
        rate = f"{recipe.steps_per_second:.3g} steps/s on {_count(recipe.gpus, 'GPU')}"
        source = f" ({recipe.source})" if recipe.source else ""
        lines = [
            f"{sizes} parameters; {memory}",
            f"about {self.hours:,.0f} GPU-hours at {rate}{source}; {self.sampling:,.0f} of them "
            "for samples, at as many multiply-adds a second",
            f"about {self.checkpoints / GB:,.0f} GB of checkpoints in "
            f"{_count(self.trainings, 'run')}, and {self.samples / GB:.2g} GB of samples while one "
            "is scored",
        ]
        if not self.has_images:
            lines.append("its images are not there yet: counted by their sizes")
        return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number > 1)


def need_of(sweep: "Sweep", configs: Sequence[Mapping[str, Any]]) -> Need:
    """Returns what trainings, one or more, of a sweep that states its machine take."""
    from dtr_lightning.config.registry import instantiate
    from dtr_lightning.experiment.experiment import Experiment
    from dtr_lightning.routing import Router

    known: dict[str, Need] = {}
    needs = []
    for config in configs:  # neither the seed nor the options of fixed masks count
        same = {**config, "seed": 0}
        steps = config["trainer"]["max_steps"]
        router: Router = instantiate(Router, config["router"], seed=0, steps=steps)
        if router.masks_only:
            same["router"] = "masks"
        key = json.dumps(same, sort_keys=True)
        if key not in known:
            known[key] = _need(sweep.recipe, config, Experiment(dict(config), meta=True))
        needs.append(known[key])
    return Need.total(needs)


def _need(recipe: Recipe, config: Mapping[str, Any], experiment: "Experiment") -> Need:
    steps, parameters = config["trainer"]["max_steps"], experiment.parameters()
    hours = steps * experiment.networks / recipe.steps_per_second / 3600 * recipe.gpus
    sampling = hours * (experiment.work() / experiment.training_work() - 1)
    side = (recipe.images or {}).get(PIXELS)
    shape = (3, side, side) if side else experiment.data.image_shape
    return Need(
        trainings=1,
        hours=hours + sampling,
        sampling=sampling,
        checkpoints=bytes_of_checkpoints(config, parameters),
        samples=config["evaluation"]["n"] * prod(shape),
        memory=memory_of_step(config, experiment),
        parameters=(parameters,),
        has_images=experiment.data.has_images,
    )


def bytes_of_checkpoints(config: Mapping[str, Any], parameters: int) -> int:
    """Returns the bytes of a run's last checkpoint and milestones; parameters of all experts."""
    steps, every = config["trainer"]["max_steps"], config["checkpoint"]["milestones"]
    return (1 + (steps // every if every else 0)) * COPIES * FLOAT * parameters


def memory_of_step(config: Mapping[str, Any], experiment: "Experiment") -> int | None:
    """Returns the bytes of a GPU that a training step takes, of one of several experts.

    The experiment is one on the meta device. None where a person's own class looks at values.
    """
    from dtr_lightning.training.memory import step_memory

    trainer = config["trainer"]
    devices = trainer["devices"] if isinstance(trainer["devices"], int) else 1
    parts = devices * trainer["num_nodes"] * trainer["accumulate_grad_batches"]
    inputs = experiment.inputs(max(1, experiment.data.batch_size // parts))
    gradients = experiment.module.gradients
    clusters = 0 if gradients.joint else gradients.clusters  # each with a gradient of its own

    def count() -> int:
        memory = step_memory(experiment.network, inputs, trainer["precision"] or "32-true")
        return memory.total + clusters * memory.gradients

    return experiment.counted(count)
