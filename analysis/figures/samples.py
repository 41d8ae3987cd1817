"""Figure 9: samples of every router from the same start noise and labels."""

__all__ = ["TITLE", "arrays_of", "classes_of", "draw", "needs", "rgb"]

from collections.abc import Sequence
from textwrap import fill

import numpy as np
import pandas as pd

from analysis.drawing.fonts import short, width_of
from analysis.drawing.style import WIDE, Drawing, caption, new_figure, of_one, styled
from analysis.read.runs import Finished
from analysis.read.settings import highlighted, largest, not_shown, settings
from dtr_lightning.rundir.arrays import read_arrays

TITLE = "Samples from the same noise (Figures 9-15)"
GAP = 1  # pixels of white between two samples
LETTER = 0.06  # inches of 7 pt text
LONGEST = 16  # letters of a class
LABEL = 30  # letters of a line of a row's name


def arrays_of(run: Finished) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns images uint8[k, C, H, W] and labels int64[k]; None if there is nothing to show."""
    try:
        arrays = read_arrays(run.sample_arrays)
        images, labels = arrays["images"], arrays["labels"]
    except (OSError, ValueError, KeyError):
        return None
    showable = images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] in (1, 3)
    return (images, labels) if showable and 0 < len(images) == len(labels) else None


def classes_of(run: Finished) -> list[str]:
    """Returns the names of the classes by label; none where they are not stored."""
    try:
        arrays = read_arrays(run.sample_arrays)
        return arrays["classes"].astype(str).tolist() if "classes" in arrays else []
    except (OSError, ValueError):
        return []


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: stored samples, uint8 with one or three channels."""
    if any(arrays_of(run) for run in runs):
        return None
    return "no finished run has stored samples (uint8, 1 or 3 channels)"


def rgb(image: np.ndarray) -> np.ndarray:
    """Returns an image uint8[1 or 3, H, W] as uint8[H, W, 3], for imshow."""
    return np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)


def _row(images: np.ndarray) -> np.ndarray:
    """Joins uint8[k, C, H, W] to one strip [H + GAP, k (W + GAP), 3] with white gaps."""
    images = np.broadcast_to(images, (len(images), 3, *images.shape[2:]))
    padded = np.pad(images, ((0, 0), (0, 0), (0, GAP), (0, GAP)), constant_values=255)
    return np.concatenate(padded.transpose(0, 2, 3, 1), axis=1)


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws a row per setting, a column per start noise and label; give run directories to select.

    A setting shows its lowest seed. Runs that were sampled otherwise than most are left out: their
    columns would not be paired.
    """
    arrays = {run.path: stored for run in runs if (stored := arrays_of(run))}
    shown = [setting.runs[0] for setting in settings([r for r in runs if r.path in arrays])]

    def start(run: Finished) -> tuple:
        images, labels = arrays[run.path]
        noise = ("evaluation.seed", "sampler", "diffusion.")
        keys = sorted(key for key in run.flat if key.startswith(noise))
        return images.shape, labels.tobytes(), *((key, str(run.flat[key])) for key in keys)

    what = "its samples do not start from the others' noise and labels"
    selected, note = largest(shown, start, what)
    every = settings(selected)
    rows = highlighted(every)
    hidden = not_shown(len(every) - len(rows))
    images, labels = arrays[selected[0].path]
    columns = min(len(images), 20 if images.shape[-1] <= 16 else 10)
    strips = [_row(arrays[row.runs[0].path][0][:columns]) for row in rows]
    sheet = np.concatenate(strips)[:-GAP, :-GAP]

    height, width = np.array(images.shape[2:]) + GAP
    known = classes_of(selected[0])
    names = [known[i] if 0 <= i < len(known) else str(i) for i in labels[:columns].tolist()]
    shown = [short(name, LONGEST) for name in names]
    labels_of_rows = [fill(short(row.label, 2 * LABEL), LABEL) for row in rows]
    margin = 0.1 + LETTER * max(map(width_of, labels_of_rows))
    longest = LETTER * max(map(width_of, shown))
    turned = longest > (WIDE - margin) / columns
    above = 0.32 + longest if turned else 0.45
    figure = new_figure(WIDE, above + (WIDE - margin) * len(sheet) / sheet.shape[1])
    ax = figure.subplots()
    ax.imshow(sheet, interpolation="nearest")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.xaxis.tick_top()
    ax.set_xticks(np.arange(columns) * width + (width - GAP - 1) / 2, shown)
    ax.tick_params(axis="x", labelrotation=90 if turned else 0)
    ax.set_yticks(np.arange(len(rows)) * height + (height - GAP - 1) / 2, labels_of_rows)
    what = "class" if known else "label"
    figure.suptitle(f"{what}; every column has one start noise", fontsize=7)
    numbers = [
        {"run": row.runs[0].path.name, "row": row.label, "index": i, "label": int(labels[i])}
        | {"class": names[i]}
        for row in rows
        for i in range(columns)
    ]
    caption(figure, of_one([row.runs[0] for row in rows]), note, hidden)
    return Drawing(figure, pd.DataFrame(numbers), "; ".join(filter(None, [note, hidden])))
