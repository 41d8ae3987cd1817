"""Figures 12-15: uncurated samples class by class, of the best run that can be sampled."""

__all__ = ["CONFIG", "TITLE", "ClassesConfig", "draw", "needs"]

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from analysis.drawing.fonts import short
from analysis.drawing.style import WIDE, Drawing, caption, new_figure, of_one, styled
from analysis.figures.samples import rgb
from analysis.measure.load import load
from analysis.read.runs import Finished
from analysis.read.settings import settings
from dtr_lightning.cli.progress_bar import Bar
from dtr_lightning.errors import UserError

TITLE = "Samples of every class"
COLUMNS = 5  # sheets side by side
LONGEST = 15  # letters of a class's name above its sheet


@dataclass(frozen=True)
class ClassesConfig:
    """Which sheets are drawn.

    Args:
        classes: how many classes have a sheet, evenly spaced.
        side: samples side by side in a sheet.
    """

    classes: int = 10
    side: int = 5

    def __post_init__(self) -> None:
        for name in ("classes", "side"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"classes.{name} must be at least 1; got {value}")


CONFIG = ClassesConfig


def _candidates(runs: Sequence[Finished]) -> list[Finished]:
    """Returns the runs that can be sampled, the best score first."""
    sound = [run for run in runs if math.isfinite(run.score)]
    return sorted((run for run in sound if run.has_checkpoint), key=lambda run: run.score)


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: a finished run with a checkpoint and a finite score."""
    return None if _candidates(runs) else "no finished run has a checkpoint and a finite score"


def sheet(images: np.ndarray, side: int) -> np.ndarray:
    """Joins uint8[side^2, C, H, W] to one square uint8[H', W', 3], with white gaps."""
    gap = max(1, images.shape[-1] // 16)
    padded = [np.pad(rgb(x), ((0, gap), (0, gap), (0, 0)), constant_values=255) for x in images]
    rows = [np.concatenate(padded[i : i + side], 1) for i in range(0, side**2, side)]
    return np.concatenate(rows)[:-gap, :-gap]


@styled
def draw(runs: Sequence[Finished], config: ClassesConfig | None = None) -> Drawing:
    """Draws a square sheet per class, of the run's own sampler and guidance; name a run for it.

    Sample j of a class starts from the noise of index class + j num_classes: none is chosen.
    """
    # Lightning takes seconds to import; figures that need no network do without.
    from dtr_lightning.experiment.evaluation import sample

    config = config or ClassesConfig()
    run, *others = _candidates(runs)
    trained = load(run)
    data, experiment = trained.experiment.data, trained.experiment
    if data.image_shape[0] not in (1, 3):
        raise UserError(f"classes: images of {data.image_shape[0]} channels cannot be shown")
    count = min(config.classes, data.num_classes)
    kinds = (torch.arange(count) * data.num_classes // count).tolist()
    indices = [kind + j * data.num_classes for kind in kinds for j in range(config.side**2)]
    labels = torch.tensor(indices) % data.num_classes
    with Bar("classes") as bar:
        report = bar.count(experiment.sampling_work(len(indices)), f"classes {run.path.name}")

        evaluation = experiment.protocol
        sampled = (trained.module, data, experiment.sampler, labels, indices, evaluation, report)
        images = torch.cat([images.cpu() for images, _ in sample(*sampled)]).numpy()

    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = new_figure(WIDE, 0.35 + rows * (WIDE / columns + 0.1))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, kind, samples in zip(axes, kinds, np.split(images, count), strict=False):
        ax.imshow(sheet(samples, config.side), interpolation="nearest")
        ax.set_title(f"class {short(data.class_names[kind], LONGEST)}", fontsize=7)
    scale = f"guidance {evaluation.guidance:g}, {run.results['score_name']} {run.score:.3g}"
    figure.suptitle(f"{settings([run])[0].label}, {scale}", fontsize=8)
    row = {"run": run.path.name, "seed": run.seed, "guidance": evaluation.guidance}
    numbers = pd.DataFrame([row | {"label": i % data.num_classes, "index": i} for i in indices])
    numbers["class"] = [data.class_names[label] for label in numbers.label]
    note = f"of {run.path.name}; name another run for it" if others else ""
    caption(figure, of_one([run]), note)
    return Drawing(figure, numbers, note)
