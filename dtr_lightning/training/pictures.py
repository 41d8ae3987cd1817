"""Sample sheets, and the pictures that TensorBoard shows."""

__all__ = ["by_class", "image_grid", "log_masks", "save_samples", "save_sheet"]

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from dtr_lightning.routing import Router
from dtr_lightning.rundir.atomic import replacing
from dtr_lightning.rundir.run import Run


def image_grid(images: Tensor, columns: int, least: int = 32) -> Tensor:
    """Returns a sheet uint8 (3, H', W') of images uint8 (N, C, H, W), row by row.

    Images smaller than `least` pixels are enlarged by whole factors, without smoothing. With as
    many columns as classes, of images whose classes come in turn, each column is one class: of few
    classes there are several columns each; more than 16 or fewer than 2 become 10.
    """
    images = images[:, :3] if images.shape[1] in (3, 4) else images[:, :1]
    factor = max(1, -(-least // images.shape[-1]))
    images = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    columns = columns * max(1, 10 // columns) if 2 <= columns <= 16 else 10
    return make_grid(images, nrow=columns, padding=2, pad_value=255)


def by_class(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Returns images uint8 (N, C, H, W) so that their classes come in turn, as a sheet needs.

    White stands where a class has fewer than its share; what is beyond it is left out. Where a
    sheet has no column per class (see `image_grid`) they stay as they are.
    """
    if not 2 <= classes <= 16:
        return images
    rows = -(-len(images) // classes)
    sheet = images.new_full((rows, classes, *images.shape[1:]), 255)
    for label in range(classes):
        own = images[labels == label][:rows]
        sheet[: len(own), label] = own
    return sheet.flatten(0, 1)


def save_sheet(path: str, images: Tensor, columns: int) -> None:
    """Writes images uint8 (N, C, H, W) as one PNG sheet."""
    sheet = image_grid(images, columns).permute(1, 2, 0).numpy()
    with replacing(path) as part:
        Image.fromarray(sheet).save(part)


def save_samples(run: Run, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    """Writes a run's first samples as arrays, with the names of their classes, and as a sheet."""
    run.samples.mkdir(exist_ok=True)
    arrays = {"images": images.numpy(), "labels": labels.numpy(), "classes": np.array(classes)}
    with replacing(run.sample_arrays) as part:
        np.savez_compressed(part, **arrays)
    sheet = by_class(images, labels, len(classes))
    save_sheet(str(run.samples / "samples.png"), sheet, len(classes))


def mask_picture(table: Tensor, title: str) -> np.ndarray:
    """Returns a table bool[tasks, channels] as uint8 (H, W, 3) with axes, active yellow.

    Task is downward, channel to the right.
    """
    # only the process that shows masks pays for it
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

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
