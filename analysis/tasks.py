"""Where on the timeline routing helps: held-out loss of each eighth, relative to no routing."""

__all__ = ["NAME", "draw", "needs"]

import math
import re
from collections.abc import Sequence

import pandas as pd

from analysis.runs import Finished, chosen, settings
from analysis.style import GREY, NARROW, WIDE, Drawing, legend, lines, new_figure, styled

NAME = "tasks"
KEY = re.compile(r"val_tasks/t(\d+)-(\d+)")


def _losses(run: Finished) -> dict[tuple[int, int], float]:
    """Returns {(first t, last t): held-out loss} at the end; empty if not validated or diverged."""
    for record in reversed(run.records):
        matches = [(KEY.fullmatch(key), value) for key, value in record.items()]
        losses = {(int(m[1]), int(m[2])): v for m, v in matches if m and v is not None}
        if losses:
            return losses if all(map(math.isfinite, losses.values())) else {}
    return {}


def _pairs(runs: Sequence[Finished]) -> list[tuple[Finished, Finished]]:
    """Returns (run, its no-routing run): equal in seed and everything else but the router."""
    with_losses = [run for run in runs if _losses(run)]
    baselines = {
        run.hash_without("router"): run
        for run in with_losses
        if run.choice("router") == "NoRouting"
    }
    routed = [run for run in with_losses if run.choice("router") != "NoRouting"]
    return [(r, b) for r in routed if (b := baselines.get(r.hash_without("router")))]


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: a routed run and its no-routing twin, both with validation losses."""
    if _pairs(runs):
        return None
    return "needs a routed run and a no-routing run that differ in nothing else, with validation"


def _relative(pairs: Sequence[tuple[Finished, Finished]]) -> pd.DataFrame:
    """Returns per run and eighth the loss, its twin's, and the difference in percent."""
    rows = []
    for run, baseline in pairs:
        theirs = _losses(baseline)
        for (first, last), loss in _losses(run).items():
            if reference := theirs.get((first, last)):
                row = {"run": run.path, "t_first": first, "t_last": last, "loss": loss}
                row |= {"loss_no_routing": reference, "percent": 100 * (loss / reference - 1)}
                rows.append(row)
    return pd.DataFrame(rows)


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws 100 (loss / loss without routing - 1) at the middle of each eighth, mean over seeds.

    Runs are paired: a run is compared with the no-routing run of its own seed. Below zero the
    router helps. Where R-TR is far off, a second panel shows the others alone.
    """
    pairs = _pairs(runs)
    relative = _relative(pairs)
    found = settings([run for run, _ in pairs])
    front = chosen(found)
    numbers = []
    for setting in found:
        rows = relative[relative.run.isin([run.path for run in setting.runs])]
        columns = ["loss", "loss_no_routing", "percent"]
        mean = rows.groupby(["t_first", "t_last"], as_index=False)[columns].mean()
        row = {"setting": setting.label, "router": setting.router, "alpha": setting.alpha}
        row |= {"beta": setting.beta, "seeds": len(setting.runs)}
        numbers.append(pd.DataFrame(row | {column: mean[column] for column in mean}))
    table = pd.concat(numbers, ignore_index=True)

    random = table[table.router == "RTR"].percent.abs().max()
    others = table[table.router != "RTR"].percent.abs().max()
    panels = 2 if random > 3 * others else 1
    figure = new_figure(NARROW if panels == 1 else WIDE, 2.6)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    looks = {id(s): style for s, style in zip(front, lines(front), strict=True)}
    for ax in axes:
        ax.axhline(0, color="black", linewidth=0.8, label="no routing", zorder=2)
        for setting, mean in zip(found, numbers, strict=True):
            if ax is not axes[0] and setting.router == "RTR":
                continue
            look = {**GREY, "zorder": 1}
            if id(setting) in looks:
                look = {**looks[id(setting)], "zorder": 3, "label": setting.label}
            ax.plot((mean.t_first + mean.t_last + 1) / 2, mean.percent, **look)
        edges = sorted({*table.t_first, int(table.t_last.max()) + 1})
        ax.set_xticks(edges[::2])
        ax.set_xticks(edges, minor=True)
        ax.set_xlim(edges[0], edges[-1])
        ax.set_xlabel("timestep t (0 = cleanest), in eighths")
    if rest := len(found) - len(front):
        axes[0].plot([], [], **GREY, label=f"{rest} other settings")
    axes[0].set_ylabel("held-out loss against\nno routing (%, below 0 helps)")
    if panels == 2:
        axes[1].set_title("without R-TR, whose range hides the others", fontsize=7)
    legend(figure)
    left = len(runs) - len({r.path for pair in pairs for r in pair})
    note = (
        f"left out {left} runs without a no-routing twin or finite validation losses"
        if left
        else ""
    )
    return Drawing(figure, table, note)
