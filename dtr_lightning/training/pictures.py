"""Sample sheets, and the pictures that TensorBoard shows."""

__all__ = ["by_class", "columns_of", "image_grid", "log_masks", "save_samples", "save_sheet"]

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from dtr_lightning.routing import Router
from dtr_lightning.routing.masks import period
from dtr_lightning.rundir.atomic import replacing
from dtr_lightning.rundir.run import Run

MOST_CLASSES = 16  # that have columns of their own
PADDING, HEADER = 2, 20  # pixels between images, and above the columns for the names of classes


def image_grid(images: Tensor, classes: int, least: int = 32) -> Tensor:
    """Returns a sheet uint8 (3, H', W') of images uint8 (N, C, H, W), row by row.

    Images smaller than `least` pixels are enlarged by whole factors, without smoothing. Of images
    whose classes come in turn, each column is one class (see `columns_of`).
    """
    images = images[:, :3] if images.shape[1] in (3, 4) else images[:, :1]
    factor = max(1, -(-least // images.shape[-1]))
    images = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    columns = columns_of(len(images), classes)
    return make_grid(images, nrow=columns, padding=PADDING, pad_value=255)


def columns_of(n: int, classes: int) -> int:
    """Returns the columns of a sheet of n images: near 10, and the last row full where it can be.

    Of 2 to 16 classes there are as many columns for each.
    """
    each = classes if 2 <= classes <= MOST_CLASSES else 1
    some = [c for c in range(each, MOST_CLASSES + 1, each) if c >= 5 or c == classes]
    full = [c for c in some if n % c == 0]
    return min(full or some, key=lambda columns: abs(columns - 10))


def by_class(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Returns images uint8 (N, C, H, W) so that their classes come in turn, as a sheet needs.

    All have as many places as the rarest class has images, but half of an even share at least:
    white stands where a class has fewer, and what is beyond it is left out. Where a sheet has no
    column per class they stay as they are.
    """
    if not 2 <= classes <= MOST_CLASSES:
        return images
    rarest = int(torch.bincount(labels, minlength=classes).min())
    rows = max(1, rarest, len(images) // classes // 2)
    sheet = images.new_full((rows, classes, *images.shape[1:]), 255)
    for label in range(classes):
        own = images[labels == label][:rows]
        sheet[: len(own), label] = own
    return sheet.flatten(0, 1)


def save_sheet(path: str, images: Tensor, names: Sequence[str]) -> None:
    """Writes images uint8 (N, C, H, W), whose classes come in turn, as one PNG sheet.

    The `names` of 2 to 16 classes stand above their columns.
    """
    sheet = image_grid(images, len(names), least=64).permute(1, 2, 0).numpy()
    picture = Image.fromarray(sheet)
    if 2 <= len(names) <= MOST_CLASSES:
        picture = _headed(picture, names, min(len(images), columns_of(len(images), len(names))))
    with replacing(path) as part:
        picture.save(part)


def _headed(sheet: Image.Image, names: Sequence[str], columns: int) -> Image.Image:
    """Returns a sheet with names, in turn, above its columns; cut where a column is narrower."""
    picture = Image.new("RGB", (sheet.width, sheet.height + HEADER), "white")
    picture.paste(sheet, (0, HEADER))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    width = (sheet.width - PADDING) / columns
    for i in range(columns):
        name = names[i % len(names)]
        while len(name) > 1 and draw.textlength(name, font) > width - PADDING:
            name = f"{name.removesuffix('.')[:-1]}."
        place = (PADDING / 2 + (i + 0.5) * width, HEADER / 2 + 1)
        draw.text(place, name, "black", font, anchor="mm")
    return picture


def save_samples(run: Run, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    """Writes a run's first samples as arrays, with the names of their classes, and as a sheet."""
    run.samples.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {"images": images.numpy(), "labels": labels.numpy()}
    arrays["classes"] = np.array(classes)
    with replacing(run.sample_arrays) as part:
        np.savez_compressed(part, **arrays)
    sheet = by_class(images, labels, len(classes))
    save_sheet(str(run.samples / "samples.png"), sheet, classes)


def mask_picture(table: Tensor, title: str) -> np.ndarray:
    """Returns a table bool[tasks, channels] as uint8 (H, W, 3) with axes, active yellow.

    Task is downward, channel to the right.
    """
    # only the process that shows masks pays for it
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    if repeats := period(table):  # the whole would be flat, or show what is not there
        shown = 4 * repeats
        table = table[:shown, : max(shown, 128)]
        title += f"\nrepeats every {repeats} tasks"
    tasks, channels = table.shape
    rows, columns = (max(1, 1200 // size) for size in table.shape)  # else averages blur edges
    picture = table.float().cpu().numpy().repeat(rows, 0).repeat(columns, 1)
    smooth = {"interpolation": "antialiased", "interpolation_stage": "data"}
    colours = LinearSegmentedColormap.from_list("masks", ["#440154", "#FDE725"])
    with matplotlib.rc_context({"font.size": 8, "text.parse_math": False, "text.usetex": False}):
        figure = Figure(figsize=(3.6, 3.2), dpi=150, layout="constrained")
        canvas, ax = FigureCanvasAgg(figure), figure.subplots()
        place = {"aspect": "auto", "extent": (0, channels, tasks, 0), "vmin": 0, "vmax": 1}
        ax.imshow(picture, cmap=colours, **place, **smooth)
        ax.set(xlabel="channel", ylabel="task t (0 = cleanest)", title=title)
        ax.set(xticks=sorted({0, channels // 2, channels}), yticks=sorted({0, tasks // 2, tasks}))
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def log_masks(writer: SummaryWriter, router: Router) -> None:
    """Shows the router's distinct masks, with axes."""
    shown: list[Tensor] = []
    for block in range(router.blocks):
        table = router.table(block)
        if table is None or any(t.shape == table.shape and torch.equal(t, table) for t in shown):
            continue
        shown.append(table)
        picture = mask_picture(table, f"block {block}; yellow: channels that a task reads")
        writer.add_image(f"router/block {block}", picture, 0, dataformats="HWC")
