"""One style for all figures: sizes, colours, markers, and the writer of PDF, PNG and CSV."""

__all__ = [
    "GREY",
    "NARROW",
    "WIDE",
    "Drawing",
    "count_images",
    "count_seeds",
    "legend",
    "lines",
    "log_ticks",
    "look",
    "new_figure",
    "panel_title",
    "save",
    "score_name",
    "styled",
]

import textwrap
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from analysis.animation import Film, write_film
from analysis.settings import Setting
from dtr_lightning.errors import UserError

NARROW, WIDE = 3.25, 6.75  # inches: one column and two columns of a paper
GREY = {"color": "0.72", "linewidth": 0.6}

# Okabe and Ito's palette; yellow is left to the masks, it is too pale for a line.
# Of one sweep every router has its own: the alternatives of Table 8, then the controls.
ROUTERS = {
    "NoRouting": ("#000000", "s"),
    "RTR": ("#D55E00", "^"),
    "DTR": ("#0072B2", "o"),
    "MaxRoaming": ("#CC79A7", "v"),
    "ERCDT": ("#E69F00", "P"),
    "CDTR": ("#56B4E9", "X"),
    "Switch": ("#009E73", "D"),
    "WeightsOnly": ("#E69F00", "v"),
    "TimeShuffledDTR": ("#56B4E9", "P"),
    "BlockPermutedDTR": ("#CC79A7", "X"),
    "SharedCore": ("#009E73", "p"),
    "FreeWindow": ("#009E73", "h"),
}
OTHERS = [("#009E73", "D"), ("#CC79A7", "v"), ("#E69F00", "P"), ("#56B4E9", "X")]
DASHES = ["-", "--", ":", "-."]

# As a decorator: inside, the figure style holds; outside, matplotlib is as the user left it.
styled = matplotlib.rc_context(
    {
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.labelsize": 8,
        "axes.linewidth": 0.6,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 8,
        "figure.constrained_layout.h_pad": 0.03,
        "figure.constrained_layout.w_pad": 0.03,
        "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine has it
        "font.size": 8,
        "grid.color": "0.92",
        "grid.linewidth": 0.5,
        "legend.fontsize": 7,
        "legend.frameon": False,
        "legend.handlelength": 2.4,
        "lines.linewidth": 1.2,
        "lines.markersize": 4,
        "pdf.fonttype": 42,
        "savefig.dpi": 300,
        "xtick.labelsize": 7,
        "xtick.major.width": 0.6,
        "ytick.labelsize": 7,
        "ytick.major.width": 0.6,
    }
)


class Drawing(NamedTuple):
    """A figure, the numbers in it, one line on what it had to leave out, and what moves, if any."""

    figure: Figure
    numbers: pd.DataFrame
    note: str = ""
    film: Film | None = None


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure, sizes in inches; it belongs to no window and no global state."""
    return Figure(figsize=(width, height), layout="constrained")


def look(router: str, rank: int = 0) -> dict[str, Any]:
    """Returns how a router's line looks, always the same; further lines of it are paler, dashed."""
    color, marker = ROUTERS.get(router) or OTHERS[zlib.crc32(router.encode()) % len(OTHERS)]
    pale = min(0.25 * rank, 0.6)
    shade = tuple(channel + (1 - channel) * pale for channel in to_rgb(color))
    face = "white" if rank % 2 else shade
    style = DASHES[rank % len(DASHES)]
    return {"color": shade, "marker": marker, "linestyle": style, "markerfacecolor": face}


def lines(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Returns the look of each setting, told apart within a router by its place in the list."""
    seen = Counter()
    looks = []
    for setting in settings:
        looks.append(look(setting.router, seen[setting.router]))
        seen[setting.router] += 1
    return looks


def legend(figure: Figure) -> None:
    """Puts the first axes' labels below the figure, in as many columns as their length allows.

    More than two rows make the figure higher, and not the axes lower.
    """
    handles, names = figure.axes[0].get_legend_handles_labels()

    def width(columns: int) -> float:  # inches: handles and gaps, and 7 pt text
        longest = [max(map(len, part)) for part in np.array_split(names, columns)]
        return 0.56 * columns - 0.14 + 0.059 * sum(longest)

    fitting = [n for n in range(1, len(names) + 1) if width(n) <= figure.get_figwidth()]
    columns = max(fitting, default=1)
    rows = -(-len(names) // columns)
    figure.set_figheight(figure.get_figheight() + 0.15 * max(0, rows - 2))
    figure.legend(handles, names, loc="outside lower center", ncols=columns)


def panel_title(ax: Axes, *parts: str, width: int = 30) -> None:
    """Writes parts above a panel of a WIDE figure's four columns, wrapped at `width` letters."""
    lines = [line for part in parts for line in textwrap.wrap(part, width)]
    ax.set_title("\n".join(lines), fontsize=6.5)


def count_seeds(counts: Iterable[float]) -> str:
    """Returns `2 seeds`, `1 to 2 seeds`; nothing where no mean is of more than one."""
    known = sorted({int(count) for count in counts if count >= 1})
    if not known or known[-1] == 1:
        return ""
    return f"{known[0]} to {known[-1]} seeds" if len(known) > 1 else f"{known[0]} seeds"


def count_images(measured: Iterable[Mapping[str, np.ndarray]], asked: int) -> str:
    """Returns `512 images`; as many as were asked for where the arrays, older ones, do not say."""
    found = sorted({int(own.get("images", asked)) for own in measured})
    return f"{' to '.join(f'{n:,}' for n in found[:: max(1, len(found) - 1)])} images"


def score_name(name: str, n: int, *more: str, width: int = 30) -> str:
    """Returns an axis label of lines no longer than `width` letters: the score, its N, and more."""
    samples = f" (N\xa0=\xa0{n:,})" if n else ""  # not broken at its spaces
    return "\n".join([*textwrap.wrap(f"{name}{samples}", width), *more])


def log_ticks(ax: Axes, which: str = "y") -> None:
    """Makes an axis logarithmic, with plain numbers as ticks, more of them in a short range."""
    axis = {"x": ax.xaxis, "y": ax.yaxis}[which]
    ax.set(**{f"{which}scale": "log"})
    low, high = sorted(axis.get_view_interval())
    short = high / low < 15
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if short else (1, 2, 3, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


@styled
def save(drawing: Drawing, directory: Path, name: str) -> list[Path]:
    """Writes NAME.pdf, .png (300 dpi), .csv (what is plotted), a film if any; returns paths."""
    pdf, png, table = (directory / f"{name}.{suffix}" for suffix in ("pdf", "png", "csv"))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Without a date the same runs give the same bytes.
        drawing.figure.savefig(pdf, metadata={"CreationDate": None})
        drawing.figure.savefig(png)
        drawing.numbers.to_csv(table, index=False)
        film = write_film(drawing.film, directory, name) if drawing.film else []
    except OSError as error:
        raise UserError(f"figures cannot be written to {directory}: {error.strerror}") from error
    return [pdf, png, table, *film]
