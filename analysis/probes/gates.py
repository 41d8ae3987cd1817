"""Switch-DiT: what each block's gate gives its experts over time, and the prior it follows."""

__all__ = ["TITLE", "draw", "needs"]

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor

from analysis.drawing.mask_tables import show
from analysis.drawing.style import (
    DASHES,
    WIDE,
    Drawing,
    caption,
    new_figure,
    of_one,
    panel_title,
    styled,
    task_ticks,
)
from analysis.measure.load import load
from analysis.read.runs import Finished
from analysis.read.settings import Setting, settings
from dtr_lightning.errors import UserError

TITLE = "Switch-DiT's gates"
BLOCKS = 4  # shown, equally spaced
EXPERTS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


class Gates(NamedTuple):
    """p [tasks, blocks, M], the k selected bool[tasks, N M], the prior, and the matched prior."""

    p: Tensor
    selected: Tensor
    prior: Tensor
    matched: Tensor


@torch.no_grad()
def _gates_of(run: Finished) -> Gates:
    """Returns what the router of a trained network gives its experts at every task."""
    network = load(run).module.model
    router = network.router
    p = router.probabilities(network.embed(torch.arange(router.tasks, device=router.prior.device)))
    selected = router.selected(p).bool().flatten(1)
    matched = router.prior[:, router.assignment]
    return Gates(*(table.cpu() for table in (p, selected, router.prior, matched)))


def _numbers(setting: Setting, gates: Gates) -> pd.DataFrame:
    """Returns a row per timestep (every 20th), block and expert: p, selected, prior, matched."""
    run = setting.runs[0]
    tasks, blocks, experts = gates.p.shape
    t = np.arange(0, tasks, max(1, tasks // 50))
    at, block, expert = (
        x.ravel() for x in np.meshgrid(t, range(blocks), range(experts), indexing="ij")
    )
    column = block * experts + expert
    row = {"setting": setting.label, "seed": run.seed, "steps": run.results.get("steps")}
    row |= {"differ_before": _differ(gates.selected, gates.prior)}
    row |= {"differ_matched": _differ(gates.selected, gates.matched)}
    row |= {"t": at, "block": block, "expert": expert, "p": gates.p.numpy()[at, block, expert]}
    tables = {"selected": gates.selected, "prior": gates.prior, "matched": gates.matched}
    return pd.DataFrame(
        row | {n: table.numpy()[at, column].astype(int) for n, table in tables.items()}
    )


def _differ(selected: Tensor, prior: Tensor) -> float:
    """Returns the share of (task, column) at which the gates chose otherwise than a prior."""
    return float((selected != prior).double().mean())


def _usable(run: Finished) -> bool:
    return (
        run.choice("router") == "Switch" and run.flat.get("experts", 1) == 1 and run.last.is_file()
    )


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: a run of Switch with its checkpoint."""
    if any(map(_usable, runs)):
        return None
    return "needs a finished run of one network with Switch (--router Switch) and its checkpoint"


def _loaded(runs: Sequence[Finished]) -> tuple[list[tuple[Setting, Gates]], list[str]]:
    """Returns the settings of Switch with the gates of their lowest seed, and who is left out."""
    loaded, left_out = [], []
    for setting in settings([run for run in runs if _usable(run)]):
        try:
            loaded.append((setting, _gates_of(setting.runs[0])))
        except UserError as error:
            left_out.append(f"left out {setting.label}: {error}")
    return loaded, left_out


def _draw_gates(axes: Sequence[Axes], p: Tensor, shown: Sequence[int]) -> None:
    """Draws p of every expert over t, an axes per block."""
    tasks, _, experts = p.shape
    for ax, block in zip(axes, shown, strict=True):
        for expert in range(experts):
            style = {"color": EXPERTS[expert % len(EXPERTS)], "linestyle": DASHES[expert % 4]}
            ax.plot(p[:, block, expert].numpy(), **style, label=f"expert {expert}")
        ax.set_ylim(0, 1)
        task_ticks(ax, tasks)
        ax.set_xlabel("timestep t")
        panel_title(ax, f"block {block}")
    for ax in axes[1:]:
        ax.set_yticklabels([])
    axes[0].set_ylabel("gate p")


def _draw_tables(axes: Sequence[Axes], gates: Gates) -> None:
    """Draws the selected experts, the prior and the matched prior, with lines between blocks."""
    _, blocks, experts = gates.p.shape
    before, after = (_differ(gates.selected, table) for table in (gates.prior, gates.matched))
    titles = {"gates: the k largest p": gates.selected}
    titles |= {f"prior before matching: {before:.0%} differ": gates.prior}
    titles |= {f"prior after matching: {after:.0%} differ": gates.matched}
    for ax, (title, table) in zip(axes, titles.items(), strict=True):
        show(ax, table)
        for block in range(1, blocks):
            ax.axvline(block * experts, color="white", linewidth=0.8)
        every = max(1, -(-blocks // 6))
        at = np.arange(0, blocks, every)
        ax.set_xticks((at + 0.5) * experts, [f"{block}" for block in at])
        ax.tick_params(axis="x", length=0)
        ax.set_xlabel("block (columns: its experts)")
        panel_title(ax, title, width=40)
    for ax in axes[1:]:
        ax.set_yticklabels([])
    axes[0].set_ylabel("timestep t")


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws p of every expert over t, a panel per block, and the selected experts beside the prior.

    Below are the k largest p of every block, the prior (DTR's table over all N M columns) as it is
    and in the order of the last matching; the titles say which share of entries differs.
    The setting of the best score is drawn; the numbers are those of all settings, at every 20th of
    1,000 tasks.
    """
    loaded, left_out = _loaded(runs)
    if not loaded:
        raise UserError(f"gates: nothing to draw: {'; '.join(left_out)}")
    setting, gates = min(loaded, key=lambda pair: (math.isnan(pair[0].score), pair[0].score))
    blocks = gates.p.shape[1]
    shown = sorted(set(np.linspace(0, blocks - 1, min(BLOCKS, blocks)).round().astype(int)))
    figure = new_figure(WIDE, 4.0)
    above, below = figure.subfigures(2, 1, height_ratios=(1.0, 1.1))
    axes = above.subplots(1, len(shown), squeeze=False)[0]
    _draw_gates(axes, gates.p, shown)
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    _draw_tables(below.subplots(1, 3), gates)
    above.suptitle(f"{setting.label}; yellow below: selected, active", fontsize=8)
    if len(loaded) > 1:
        left_out.append(f"drawn for {setting.label}; {len(loaded) - 1} more in the CSV")
    table = pd.concat([_numbers(*pair) for pair in loaded], ignore_index=True)
    note = "; ".join(left_out)
    caption(figure, of_one(setting.runs[:1]), note)
    return Drawing(figure, table, note)
