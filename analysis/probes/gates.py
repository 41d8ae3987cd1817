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
from torch.nn import functional as F

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
from analysis.read.runs import Finished
from analysis.read.settings import Setting, settings
from dtr_lightning.errors import UserError
from dtr_lightning.models.adm import TimeEmbed
from dtr_lightning.models.layers import TimestepEmbedder
from dtr_lightning.routing import masks
from dtr_lightning.training.weights import read_checkpoint

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
def _embedding(state: dict[str, Tensor], tasks: int) -> Tensor:
    """Returns the embeddings [tasks, C] of all timesteps by the run's own time embedder."""
    for prefix, layers in (("model.t_embedder.", "mlp.0"), ("model.time_embed.", "0")):
        if (first := state.get(f"{prefix}{layers}.weight")) is not None:
            own = {n.removeprefix(prefix): w for n, w in state.items() if n.startswith(prefix)}
            channels, frequencies = first.shape
            of_dit = layers != "0"
            make = TimestepEmbedder if of_dit else TimeEmbed
            module = make(*((channels, frequencies) if of_dit else (frequencies, channels)))
            module.load_state_dict(own)
            return module(torch.arange(tasks))
    raise UserError("its network has no time embedder that is known here")


@torch.no_grad()
def _read(run: Finished) -> Gates:
    """Returns the gates of a run: of its checkpoint only the time embedder and gates are read."""
    state = read_checkpoint(run.last)["state_dict"]
    options = {name: run.flat.get(f"router.{name}") for name in ("experts", "k", "alpha")}
    experts, k = int(options["experts"] or 3), int(options["k"] or 2)
    tasks = int(run.flat.get("diffusion.T", 1000))
    emb = F.silu(_embedding(state, tasks))
    p, block = [], 0
    while (weight := state.get(f"model.router.routers.{block}.f_gate.1.weight")) is not None:
        bias = state[f"model.router.routers.{block}.f_gate.1.bias"]
        p.append(F.linear(emb, weight.float(), bias.float()).softmax(-1))
        block += 1
    assignment = state.get("model.router.assignment")
    if not p or assignment is None:
        raise UserError(f"{run.last} holds no gates")
    gates = torch.stack(p, 1)
    selected = torch.zeros_like(gates).scatter(-1, gates.topk(k, -1).indices, 1.0).bool().flatten(1)
    prior = masks.dtr(tasks, block * experts, float(options["alpha"] or 4.0), k / experts)
    return Gates(gates, selected, prior, prior[:, assignment])


def _numbers(run: Finished, label: str, found: Gates) -> pd.DataFrame:
    """Returns a row per timestep (every 20th), block and expert: p, selected, prior, matched."""
    tasks, blocks, experts = found.p.shape
    t = np.arange(0, tasks, max(1, tasks // 50))
    at, block, expert = (
        x.ravel() for x in np.meshgrid(t, range(blocks), range(experts), indexing="ij")
    )
    column = block * experts + expert
    row = {"setting": label, "seed": run.seed, "steps": run.results.get("steps")}
    row |= {"differ_before": _differ(found.selected, found.prior)}
    row |= {"differ_matched": _differ(found.selected, found.matched)}
    row |= {"t": at, "block": block, "expert": expert, "p": found.p.numpy()[at, block, expert]}
    tables = {"selected": found.selected, "prior": found.prior, "matched": found.matched}
    return pd.DataFrame(
        row | {n: table.numpy()[at, column].astype(int) for n, table in tables.items()}
    )


def _differ(selected: Tensor, prior: Tensor) -> float:
    """Returns the share of (task, column) at which the gates chose otherwise than a prior."""
    return float((selected != prior).double().mean())


def _readable(runs: Sequence[Finished]) -> tuple[list[tuple[Setting, Gates]], list[str]]:
    """Returns the settings of Switch with the gates of their lowest seed, and who is left out."""
    found, left = [], []
    for setting in settings([run for run in runs if run.choice("router") == "Switch"]):
        try:
            found.append((setting, _read(setting.runs[0])))
        except (UserError, RuntimeError, ValueError) as error:
            left.append(f"left out {setting.label}: {' '.join(str(error).split())}")
    return found, left


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: a run of Switch with its checkpoint."""
    found, left = _readable(runs)
    if found:
        return None
    return left[0] if left else "needs a finished run of Switch: --router Switch"


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


def _draw_tables(axes: Sequence[Axes], found: Gates) -> None:
    """Draws the selected experts, the prior and the matched prior, with lines between blocks."""
    _, blocks, experts = found.p.shape
    before, after = (_differ(found.selected, table) for table in (found.prior, found.matched))
    titles = {"gates: the k largest p": found.selected}
    titles |= {f"prior before matching: {before:.0%} differ": found.prior}
    titles |= {f"prior after matching: {after:.0%} differ": found.matched}
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
    and in the order of the last matching; the share of entries that differ is told. The setting of
    the best score is drawn; the numbers are those of all, at every 20th of 1,000 tasks.
    """
    found, left = _readable(runs)
    best = min(found, key=lambda one: (math.isnan(one[0].score), one[0].score))
    setting, gates = best
    blocks = gates.p.shape[1]
    shown = sorted(set(np.linspace(0, blocks - 1, min(BLOCKS, blocks)).round().astype(int)))
    figure = new_figure(WIDE, 4.0)
    above, below = figure.subfigures(2, 1, height_ratios=(1.0, 1.1))
    axes = above.subplots(1, len(shown), squeeze=False)[0]
    _draw_gates(axes, gates.p, shown)
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    _draw_tables(below.subplots(1, 3), gates)
    above.suptitle(f"{setting.label}; yellow below: selected, active", fontsize=8)
    if len(found) > 1:
        left.append(f"drawn for {setting.label}; {len(found) - 1} more in the CSV")
    numbers = [_numbers(s.runs[0], s.label, own) for s, own in found]
    caption(figure, of_one(setting.runs[:1]), "; ".join(left))
    return Drawing(figure, pd.concat(numbers, ignore_index=True), "; ".join(left))
