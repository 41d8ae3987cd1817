"""What the trainings of a sweep take on the machine that it states: hours, disk and memory.

Nothing is trained or read for it: networks are counted on the meta device, and images that are not
there yet are replaced by their sizes.
"""

__all__ = ["COPIES", "FLOAT", "Need", "need_of", "without_images"]

import json
from collections.abc import Mapping, Sequence
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

    sampling is the part of the GPU-hours that goes into scores.
    """

    trainings: int
    hours: float
    sampling: float
    checkpoints: int
    samples: int
    memory: int
    parameters: tuple[int, ...]

    def lines(self, sweep: "Sweep") -> list[str]:
        """Returns what `--dry-run` says of them."""
        recipe = sweep.recipe
        sizes = ", ".join(f"{n / 1e6:.2f} M" for n in self.parameters)
        config = sweep.points[0].config if sweep.points else sweep.config
        trainer, absent = config["trainer"], config["data"]["class_path"] == "NoImages"
        rate = f"{recipe.steps_per_second:.3g} steps/s on {_count(recipe.gpus, 'GPU')}"
        source = f" ({recipe.source})" if recipe.source else ""
        precision = trainer["precision"] or "32-true"
        return [
            f"{sizes} parameters; about {self.memory / GIB:.1f} GiB of each GPU with {precision}, "
            "and 2 GiB for what is held for an instant",
            f"about {self.hours:,.0f} GPU-hours at {rate}{source}; {self.sampling:,.0f} of them "
            "for samples, at as many multiply-adds a second",
            f"about {self.checkpoints / GB:,.0f} GB of checkpoints in "
            f"{_count(self.trainings, 'run')}, and {self.samples / GB:.2g} GB of samples while one "
            "is scored",
            *(["its images are not there yet: counted by their sizes"] if absent else []),
        ]

    def __add__(self, other: "Need") -> "Need":  # type: ignore[override]
        """Returns what two sweeps take, one after the other."""
        sums = (a + b for a, b in zip(self[:4], other[:4], strict=True))
        most = (max(a, b) for a, b in zip(self[4:6], other[4:6], strict=True))
        return Need(*sums, *most, tuple(sorted({*self.parameters, *other.parameters})))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number > 1)


def need_of(sweep: "Sweep", configs: Sequence[Mapping[str, Any]]) -> Need:
    """Returns what trainings of a sweep that states its machine take."""
    from dtr_lightning.experiment.experiment import Experiment

    needs: dict[str, Need] = {}
    total = Need(0, 0.0, 0.0, 0, 0, 0, ())
    for config in configs:  # neither the seed nor the options of a router of masks count
        same = {**config, "seed": 0, "router": config["router"]["class_path"]}
        key = json.dumps(same, sort_keys=True)
        if key not in needs:
            needs[key] = _need(sweep.recipe, config, Experiment(dict(config), meta=True))
        total += needs[key]
    return total


def _need(recipe: Recipe, config: Mapping[str, Any], experiment: "Experiment") -> Need:
    parameters, networks = experiment.parameters(), experiment.networks
    steps, every = config["trainer"]["max_steps"], config["checkpoint"]["milestones"]
    checkpoints = 1 + (steps // every if every else 0)  # of each network
    hours = steps * networks / (recipe.steps_per_second or 1.0) / 3600 * recipe.gpus
    sampling = hours * (experiment.work() / experiment.training_work() - 1)
    side = (recipe.images or {}).get(PIXELS)
    shape = (3, side, side) if side else experiment.data.image_shape
    return Need(
        trainings=1,
        hours=hours + sampling,
        sampling=sampling,
        checkpoints=checkpoints * COPIES * FLOAT * parameters,
        samples=config["evaluation"]["n"] * prod(shape),
        memory=_memory(config, experiment),
        parameters=(parameters,),
    )


def _memory(config: Mapping[str, Any], experiment: "Experiment") -> int:
    """Returns the bytes of a GPU that a training step takes, of one of several experts."""
    import torch

    from dtr_lightning.training.memory import step_memory

    trainer = config["trainer"]
    devices = trainer["devices"] if isinstance(trainer["devices"], int) else 1
    parts = devices * trainer["num_nodes"] * trainer["accumulate_grad_batches"]
    share = max(1, experiment.data.batch_size // parts)
    t = torch.zeros(share, dtype=torch.long, device="meta")
    y, captions = t, experiment.data.captions
    if captions is not None:
        y = captions.null.to("meta").expand(share, -1, -1)
    x = torch.empty(share, *experiment.data.shape, device="meta")
    memory = step_memory(experiment.network, (x, t, y), trainer["precision"] or "32-true")
    gradients = experiment.module.gradients
    clusters = 0 if gradients.joint else gradients.clusters  # each with a gradient of its own
    return memory.total + clusters * memory.gradients
