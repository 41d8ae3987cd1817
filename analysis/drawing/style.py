"""One style for all figures: sizes, colours, axes, captions, and the writer of PDF, PNG and CSV."""

__all__ = [
    "GREY",
    "NARROW",
    "WIDE",
    "Drawing",
    "as_label",
    "band",
    "caption",
    "count_images",
    "count_seeds",
    "legend",
    "line_style",
    "lines",
    "log_bounds",
    "log_ticks",
    "new_figure",
    "of_bands",
    "of_one",
    "of_seeds",
    "panel_title",
    "range_ticks",
    "save",
    "score_axis",
    "score_name",
    "styled",
    "task_ticks",
]

import math
import textwrap
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from analysis.drawing.animation import Film, write_film
from analysis.drawing.fonts import FAMILY, families, give_fonts, short, width_of
from analysis.read.runs import Recorded
from dtr_lightning.rundir.atomic import writing

NARROW, WIDE = 3.25, 6.75  # inches: one column and two columns of a paper
GREY = {"color": "0.72", "linewidth": 0.6}

# Okabe and Ito's palette without yellow, which is too pale for a line. A router that is not here
# takes its colour and marker from its name; `lines` makes routers of one figure differ.
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
SHADES, MARKERS = 3, "osD^vPXh"  # up to 3 lines of a router differ in paleness, more in markers
# Score and N: two seeds differ by about this much, over six of results/digits/seeds.csv.
NOISE = {("fd_digits_v1", 1797): 0.2}
BANDS = ("bands: from one seed to the other", "bands: 95 % t interval")
LEAST = 2.0  # the factor that a logarithmic axis spans at least: close scores look close

STYLE = {
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "font.family": FAMILY,
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
    "text.usetex": False,
    "text.parse_math": False,  # names from data hold $ and _: text is text
    "xtick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.labelsize": 7,
    "ytick.major.width": 0.6,
}


@contextmanager
def _styled() -> Iterator[None]:
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # a box is all there is for a letter that no font has
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


# As a decorator: inside, the figure style holds; outside, matplotlib is as the user left it.
styled = _styled()


class Drawing(NamedTuple):
    """A figure, its numbers, one line on what is left out, and its animation if it has one."""

    figure: Figure
    numbers: pd.DataFrame
    note: str = ""
    film: Film | None = None


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure, sizes in inches, outside of pyplot."""
    return Figure(figsize=(width, height), layout="constrained")


def line_style(router: str, rank: int = 0) -> dict[str, Any]:
    """Returns how a router's line looks in every figure; its further lines are paler and dashed."""
    color, marker = ROUTERS.get(router) or OTHERS[zlib.crc32(router.encode()) % len(OTHERS)]
    pale = min(0.25 * rank, 0.6)
    shade = tuple(channel + (1 - channel) * pale for channel in to_rgb(color))
    face = "white" if rank % 2 else shade
    style = DASHES[rank % len(DASHES)]
    return {"color": shade, "marker": marker, "linestyle": style, "markerfacecolor": face}


def lines(routers: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the style of each line of a figure.

    No two routers look alike, nor do two of up to eight lines of one router: of few, each has a
    colour of its own as long as the palette has some left, and the marker of its router.
    """
    counts, seen = Counter(routers), Counter()
    styles = {router: line_style(router) for router in counts}
    taken = [(style["color"], style["marker"]) for style in styles.values()]
    pairs = ((to_rgb(color), marker) for marker in MARKERS for color, _ in OTHERS)
    free = [pair for pair in pairs if pair not in taken]
    for i, router in enumerate(styles):
        if taken[i] in taken[:i] and free:
            styles[router] = dict(zip(("color", "marker"), free.pop(0), strict=True))
    used = {styles[router]["color"] for router in styles}
    left = [color for color, _ in OTHERS if to_rgb(color) not in used]
    ready = []
    for router in routers:
        rank, count = seen[router], counts[router]
        seen[router] += 1
        style = line_style(router, rank)
        if count > SHADES:
            shade = matplotlib.colormaps["viridis"](0.9 * rank / (count - 1))[:3]
            marker = MARKERS[rank % len(MARKERS)]
            style |= {"color": shade, "marker": marker, "markerfacecolor": shade}
        elif rank and left:
            color = to_rgb(left.pop(0))
            face = color if style["markerfacecolor"] != "white" else "white"
            style |= {"color": color, "markerfacecolor": face}
        elif styles[router].keys() == {"color", "marker"}:
            style |= styles[router] | {"markerfacecolor": styles[router]["color"]}
        ready.append(style)
    return ready


def as_label(name: str) -> str:
    """Returns a name for a legend, which hides those that begin with an underscore."""
    name = short(name, 120)
    return f" {name}" if name.startswith("_") else name


def legend(figure: Figure) -> None:
    """Puts the first axes' labels below the figure, in as many columns as their length allows.

    More than two rows make the figure higher, and not the axes lower; a label that is longer than
    the figure is wide is wrapped.
    """
    handles, names = figure.axes[0].get_legend_handles_labels()
    if not names:
        return
    longest = int((figure.get_figwidth() - 0.5) / 0.059)
    names = [textwrap.fill(name, longest) for name in names]

    def width(columns: int) -> float:  # inches: handles and gaps, and 7 pt text
        longest = [max(map(width_of, part)) for part in np.array_split(names, columns)]
        return 0.56 * columns - 0.14 + 0.059 * sum(longest)

    fitting = [n for n in range(1, len(names) + 1) if width(n) <= figure.get_figwidth()]
    columns = max(fitting, default=1)
    rows = -(-len(names) // columns) + sum(name.count("\n") for name in names)
    figure.set_figheight(figure.get_figheight() + 0.15 * max(0, rows - 2))
    below = figure.legend(handles, names, loc="outside lower center", ncols=columns)
    for text in below.get_texts():
        text.set_fontfamily(families("".join(names)))


def caption(figure: Figure, *parts: str) -> None:
    """Writes small grey lines below all else, and makes room for them.

    Call it once, after `legend`.
    """
    width, size = figure.get_figwidth(), 5.5
    letters = int(width / (0.0091 * size))
    lines = [line for part in filter(None, parts) for line in textwrap.wrap(part, letters)]
    if not lines:
        return
    strip = 0.018 * size * len(lines) + 0.03  # inches
    height = figure.get_figheight() + strip
    figure.set_figheight(height)
    bottom = strip / height
    for below in figure.legends:  # moved up, it is no longer part of the layout
        below.set_bbox_to_anchor((0, bottom, 1, 1 - bottom), figure.transFigure)
        bottom += below.get_tightbbox().height / figure.dpi / height
    figure.get_layout_engine().set(rect=(0, bottom, 1, 1 - bottom))
    font = {"ha": "center", "va": "bottom", "fontsize": size, "color": "0.35", "in_layout": False}
    figure.text(0.5, 0.01 / height, "\n".join(lines), **font)


def panel_title(ax: Axes, *parts: str, width: int = 30) -> None:
    """Writes parts above a panel of a WIDE figure's four columns, wrapped at `width` letters."""
    lines = [line for part in parts for line in textwrap.wrap(short(part, 4 * width), width)]
    ax.set_title("\n".join(lines), fontsize=6.5)


def count_seeds(counts: Iterable[float]) -> str:
    """Returns `2 seeds` or `1 to 2 seeds`; empty where no mean is of more than one seed."""
    known = sorted({int(count) for count in counts if count >= 1})
    if not known or known[-1] == 1:
        return ""
    return f"{known[0]} to {known[-1]} seeds" if len(known) > 1 else f"{known[0]} seeds"


def of_seeds(
    counts: Iterable[float],
    protocol: tuple[str, int] | None = None,
    spread: str = ", 95 % t interval",
) -> str:
    """Returns the caption of how many seeds a figure has, and what one seed cannot show.

    protocol: name and N of the score, whose noise may be known. spread: what is shown of several
    seeds beside their mean, with the mark before it.
    """
    counts = [count for count in counts if count >= 1]
    several = count_seeds(counts)
    seeds = f"mean of {several}{spread}" if several else "one seed"
    if counts and min(counts) > 1:
        return seeds
    noise = NOISE.get(protocol) if protocol else None
    rest = "small differences mean nothing, as the noise between seeds is unknown"
    if noise:
        rest = f"differences below about {noise:g}, the known noise, mean nothing"
    return f"{seeds}{'; where it is one' if several else ''}: {rest}"


def of_bands(counts: Iterable[float]) -> str:
    """Returns what `band` draws around means of so many seeds, in words; empty for one seed."""
    counts = {int(count) for count in counts if count > 1}
    few, more = bool(counts & {2}), bool(counts - {2})
    both = "bands: 95 % t interval, of two seeds from one to the other"
    return both if few and more else BANDS[more] if counts else ""


def band(ax: Axes, x: Sequence[float], rows: pd.DataFrame, color: Any) -> None:
    """Draws what lies around means: the t interval `low` to `high`, or both of two `seeds`.

    An interval of two seeds is some 13 times as wide as they are apart, and says nothing.
    """
    two = rows.seeds == 2
    low, high = (rows[a].where(~two, rows[b]) for a, b in (("low", "lowest"), ("high", "highest")))
    ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def of_one(runs: Iterable[Recorded]) -> str:
    """Returns the caption of a figure that shows one run, or one run of every setting."""
    seeds = [run.seed for run in runs]
    each = " each" * (len(seeds) > 1)
    numbers = ", ".join(map(str, sorted(set(seeds))))
    return f"one seed{each} ({numbers}): what another seed would show is unknown"


def count_images(measured: Iterable[Mapping[str, np.ndarray]], asked: int) -> str:
    """Returns `512 images`; arrays of older versions do not say, and have the number asked for."""
    counts = sorted({int(arrays.get("images", asked)) for arrays in measured})
    return f"{' to '.join(f'{n:,}' for n in counts[:: max(1, len(counts) - 1)])} images"


def score_name(name: str, n: int, *more: str, width: int = 30) -> str:
    """Returns an axis label of lines no longer than `width` letters: the score, its N, and more."""
    samples = f" (N\xa0=\xa0{n:,})" if n else ""  # not broken at its spaces
    return "\n".join([*textwrap.wrap(f"{name}{samples}", width), *more])


def log_bounds(values: Iterable[float], pad: float = 1.1) -> tuple[float, float] | None:
    """Returns limits of a logarithmic scale that holds the finite values; None if one is not > 0.

    They are at least a factor of LEAST apart, so that close values look close.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite or min(finite) <= 0:
        return None
    low, high = min(finite) / pad, max(finite) * pad
    more = max(1.0, LEAST * low / high) ** 0.5
    return low / more, high * more


def score_axis(ax: Axes, values: Sequence[float], log: bool | None = None) -> bool:
    """Makes the y axis begin at zero, or logarithmic where values span a factor of ten.

    So close scores look close. `log` asks for one or the other; values that are not above zero have
    no logarithmic axis. Returns whether it is logarithmic.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    bounds = log_bounds(finite)
    if bounds and (max(finite) > 10 * min(finite) if log is None else log):
        ax.set_ylim(bounds)
        log_ticks(ax)
        return True
    low, high = min(0.0, *finite), max(0.0, *finite)
    span = (high - low) or 1.0
    ax.set_ylim(low - 0.05 * span * (low < 0), high + 0.05 * span)
    return False


def log_ticks(ax: Axes, which: str = "y") -> None:
    """Makes an axis logarithmic, with plain numbers as ticks, more of them in a short range."""
    axis = {"x": ax.xaxis, "y": ax.yaxis}[which]
    ax.set(**{f"{which}scale": "log"})
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(log_locator(low, high))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def log_locator(low: float, high: float) -> LogLocator:
    """Returns the ticks of a logarithmic scale from low to high."""
    ratio = high / low
    return LogLocator(
        subs=(1, 1.5, 2, 3, 5, 7) if ratio < 15 else (1, 2, 3, 5) if ratio < 1e4 else (1,)
    )


def task_ticks(ax: Axes, tasks: int, which: str = "x", middle: bool = True) -> None:
    """Makes an axis run over all tasks, y downward, with ticks at both ends and the middle."""
    ticks = sorted({0, tasks, *([tasks // 2] if middle else [])})
    ax.set(**{f"{which}ticks": ticks, f"{which}lim": (0, tasks) if which == "x" else (tasks, 0)})


def range_ticks(ax: Axes, edges: Iterable[int], most: int = 5) -> None:
    """Makes x run over ranges of tasks with a tick at every edge; at most `most` have a number.

    The first and the last edge always have one.
    """
    edges = sorted({int(edge) for edge in edges})
    named = np.linspace(0, len(edges) - 1, min(most, len(edges))).round().astype(int)
    ax.set_xticks([edges[i] for i in named])
    ax.set_xticks(edges, minor=True)
    ax.set_xlim(edges[0], edges[-1])


@styled
def save(drawing: Drawing, directory: Path, name: str) -> list[Path]:
    """Writes NAME.pdf, .png (300 dpi), .csv (the numbers), and the animation; returns the paths."""
    pdf, png, table = (directory / f"{name}.{suffix}" for suffix in ("pdf", "png", "csv"))
    for figure in (drawing.figure, *([drawing.film.figure] if drawing.film else [])):
        give_fonts(figure)
        figure.set_layout_engine("none")  # laid out once, for both files
    with writing(pdf) as part:  # without a date the same runs give the same bytes
        drawing.figure.savefig(part, metadata={"CreationDate": None})
    with writing(png) as part:
        drawing.figure.savefig(part)
    film = write_film(drawing.film, directory, name) if drawing.film else []
    with writing(table) as part:  # names of files need not be UTF-8
        drawing.numbers.to_csv(part, index=False, errors="backslashreplace")
    return [pdf, png, table, *film]
