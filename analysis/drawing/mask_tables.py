"""Makes the mask tables of runs' routers from their configs."""

__all__ = [
    "BETA",
    "FORMULAS",
    "SMOOTH",
    "Masks",
    "enlarged",
    "few_periods",
    "mask_tables",
    "of_masks",
    "show",
]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from torch import Tensor

from analysis.drawing.style import task_ticks
from analysis.read.runs import Finished
from analysis.read.settings import ALPHA, Setting, highlighted, settings
from dtr_lightning.config.registry import class_of, instantiate
from dtr_lightning.errors import UserError
from dtr_lightning.routing import Router, masks

BETA = 0.8
WIDTHS = {"DiT_S": 384, "DiT_B": 768, "DiT_L": 1024, "DiT_XL": 1152}
FORMULAS = {  # Figure 2's panels
    "random": ("RTR", None),
    f"0 < {ALPHA} < 1  ({ALPHA} = 0.5)": ("DTR", 0.5),
    f"{ALPHA} = 1": ("DTR", 1.0),
    f"{ALPHA} > 1  ({ALPHA} = 4)": ("DTR", 4.0),
}
MOST = 16  # routers of a figure
COLORS = LinearSegmentedColormap.from_list("masks", ["#440154", "#FDE725"])  # off to active
# A picture of fewer pixels than tasks shows averages: every n-th task would show other patterns.
PERIODS, CHANNELS = 4, 128  # of a table that repeats itself are drawn; of long periods more
PIXELS = 1000  # more than a panel has
SMOOTH = {"interpolation": "antialiased", "interpolation_stage": "data"}
MADE: WeakKeyDictionary[Finished, list[tuple[Tensor, str, bool]]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Masks:
    """One table bool[tasks, channels] of the first block.

    `moment` is the step of training, empty for masks that never change; `differs` is whether other
    blocks have other masks.
    """

    setting: Setting
    label: str
    table: Tensor
    moment: str = ""
    differs: bool = False

    @property
    def name(self) -> str:
        """The label and the moment."""
        return f"{self.label}, {self.moment}" if self.moment else self.label

    @cached_property
    def row(self) -> dict:
        """What the rows of a CSV share."""
        s = self.setting
        row = {"masks": self.name, "router": s.router, "alpha": s.alpha, "beta": s.beta}
        tasks, channels = self.table.shape
        return row | {"tasks": tasks, "channels": channels, "active": int(self.table[0].sum())}


def _width(run: Finished) -> int | None:
    """Returns C of a DiT, or the stem's channels of an ADM."""
    named = run.flat.get("model.hidden_size") or run.flat.get("model.model_channels")
    width = named or WIDTHS.get(run.choice("model"))
    return None if width is None else int(width)


def _changes(run: Finished) -> bool:
    """Returns whether the run's router has an `advance` of its own: masks change in training."""
    try:
        router = class_of(Router, run.config["router"]["class_path"])
    except (UserError, ImportError, AttributeError, KeyError):
        return False
    return router.advance is not Router.advance


def _key(run: Finished) -> tuple:
    options = sorted((k, repr(v)) for k, v in run.flat.items() if k.startswith("router."))
    steps = run.flat.get("trainer.max_steps") if _changes(run) else None
    return run.choice("router"), *options, _width(run), run.flat.get("diffusion.T"), steps


def _made(run: Finished) -> list[tuple[Tensor, str, bool]]:
    """Returns a run's table, its moment and whether blocks differ; nothing without masks.

    Masks that change are those of the first and the last step. Tables are made once per run.
    """
    if run in MADE:
        return MADE[run]
    width, tasks = _width(run) or 768, int(run.flat.get("diffusion.T", 1000))
    steps = int(run.flat.get("trainer.max_steps", 1))
    router = instantiate(Router, run.config["router"], seed=run.seed, steps=steps)
    router.bind(tasks, [width] * 2, width)
    table, second = router.table(0), router.table(1)
    made: list[tuple[Tensor, str, bool]] = []
    if table is not None and second is not None:
        differs = not table.equal(second)
        made = [(table, "", differs)]
        if _changes(run):
            made = [(table.clone(), "step 0", differs)]
            router.advance(steps, lambda t: t)
            if (last := router.table(0)) is not None:
                made.append((last, f"step {steps:,}", differs))
    MADE[run] = made
    return made


def _formulas(runs: Sequence[Finished]) -> list[Masks]:
    """Returns random masks and DTR's at three alphas; C and T are the first run's that has them."""
    channels = next(filter(None, map(_width, runs)), 768)
    tasks = int(runs[0].flat.get("diffusion.T", 1000)) if runs else 1000
    tables = []
    for label, (router, alpha) in FORMULAS.items():
        if alpha is None:
            table = masks.random(tasks, channels, BETA)
        else:
            table = masks.dtr(tasks, channels, alpha, BETA)
        setting = Setting(router, alpha or math.nan, BETA, "", "", ())
        tables.append(Masks(setting, label, table, differs=alpha is None))
    return tables


def mask_tables(runs: Sequence[Finished]) -> tuple[list[Masks], str]:
    """Returns the distinct mask tables of these runs, and one line on what is left out.

    Those of Figure 2 where no run has any. Random masks are those of the lowest seed. Of more than
    MOST routers, the `highlighted` ones are shown.
    """
    lowest = sorted(runs, key=lambda run: run.seed)
    distinct = {_key(run): run for run in reversed(lowest) if run.choice("router") != "NoRouting"}
    routed, skipped, tables = list(distinct.values()), [], []
    for setting in settings(routed):
        try:
            made = _made(setting.runs[0])
            tables.append([Masks(setting, setting.label, *table) for table in made])
        except (UserError, ImportError, AttributeError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            skipped.append(f"left out {setting.label}: its masks cannot be made again ({reason})")
    tables = [moments for moments in tables if moments]
    if len(tables) > MOST:
        few = highlighted([moments[0].setting for moments in tables])
        shown = [moments for moments in tables if any(moments[0].setting is s for s in few)]
        skipped.append(f"{len(tables) - len(shown)} other masks not shown: name single runs to see")
        tables = shown
    return [masks for moments in tables for masks in moments] or _formulas(runs), "; ".join(skipped)


def enlarged(table: np.ndarray, axis: int) -> np.ndarray:
    """Repeats the entries of a small table along an axis, so that their edges stay sharp."""
    return table.repeat(max(1, PIXELS // table.shape[axis]), axis)


def few_periods(table: Tensor) -> tuple[Tensor, str]:
    """Returns what to draw of a table bool[tasks, channels], and in words how it goes on.

    A picture of a table that repeats itself many times would be flat, or show what is not there.
    """
    repeats = masks.period(table)
    if repeats is None:
        return table, ""
    shown = PERIODS * repeats
    return table[:shown, : max(shown, CHANNELS)], f"repeats every {repeats} tasks"


def show(ax: Axes, table: Tensor) -> None:
    """Draws a table bool[tasks, channels]: task downward, channel to the right, active yellow."""
    tasks, channels = table.shape
    place = {"aspect": "auto", "extent": (0, channels, tasks, 0)}
    picture = enlarged(enlarged(table.numpy(), 0), 1)
    ax.imshow(picture.astype(np.float32), cmap=COLORS, vmin=0, vmax=1, **place, **SMOOTH)
    ax.grid(False)
    ax.set_xticks(sorted({0, channels // 2, channels}))
    task_ticks(ax, tasks, "y")


def of_masks(runs: Sequence[Finished]) -> str:
    """Returns the caption of figures of masks: nothing in them is measured."""
    seed = min((run.seed for run in runs), default=0)
    return f"masks follow from formulas, random ones from one seed ({seed}): nothing is measured"
