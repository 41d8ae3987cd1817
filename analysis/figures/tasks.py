"""Where on the timeline routing helps or hurts: held-out loss of each eighth."""

__all__ = ["TITLE", "draw", "losses_of", "needs"]

import math
import re
from collections.abc import Sequence

import pandas as pd

from analysis.drawing.style import (
    GREY,
    WIDE,
    Drawing,
    as_label,
    band,
    caption,
    legend,
    lines,
    new_figure,
    of_bands,
    of_seeds,
    range_ticks,
    score_axis,
    styled,
)
from analysis.read.runs import Finished
from analysis.read.settings import highlighted, settings
from analysis.read.statistics import t_interval

TITLE = "Where on the timeline routing helps"
KEY = re.compile(r"val_tasks/t(\d+)-(\d+)")


def losses_of(run: Finished) -> dict[tuple[int, int], float]:
    """Returns {(first t, last t): held-out loss} at the end; empty if none or diverged."""
    for record in reversed(run.records):
        matches = [(KEY.fullmatch(key), value) for key, value in record.items()]
        losses = {(int(m[1]), int(m[2])): v for m, v in matches if m}
        if losses:
            known = all(v is not None and math.isfinite(v) for v in losses.values())
            return losses if known else {}
    return {}


def _pairs(runs: Sequence[Finished]) -> list[tuple[Finished, Finished]]:
    """Returns (run, its no-routing run): equal in seed and everything else but the router."""
    with_losses = [run for run in runs if losses_of(run)]
    baselines = {
        run.hash_without("router"): run
        for run in with_losses
        if run.choice("router") == "NoRouting"
    }
    routed = [run for run in with_losses if run.choice("router") != "NoRouting"]
    return [(r, b) for r in routed if (b := baselines.get(r.hash_without("router")))]


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: a routed run and its no-routing twin, both with held-out losses."""
    if _pairs(runs):
        return None
    return (
        "needs a routed run and a no-routing run that differ in nothing else, both with held-out "
        "losses on the way: set evaluation.every above 0"
    )


def _relative(pairs: Sequence[tuple[Finished, Finished]]) -> pd.DataFrame:
    """Returns per run and eighth the loss, its twin's, and the difference in percent."""
    rows = []
    for run, baseline in pairs:
        theirs = losses_of(baseline)
        for (first, last), loss in losses_of(run).items():
            if reference := theirs.get((first, last)):
                row = {"run": run.path, "t_first": first, "t_last": last, "loss": loss}
                row |= {"loss_no_routing": reference, "percent": 100 * (loss / reference - 1)}
                rows.append(row)
    return pd.DataFrame(rows)


def _over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the mean losses and percents of each eighth, and the t interval of the percents."""
    means = []
    for (first, last), each in rows.groupby(["t_first", "t_last"]):
        mean = each[["loss", "loss_no_routing", "percent"]].mean().to_dict()
        low, high = t_interval([*each.percent])
        ends = {"low": low, "high": high}
        ends |= {"lowest": each.percent.min(), "highest": each.percent.max()}
        means.append({"t_first": first, "t_last": last} | mean | ends)
    return pd.DataFrame(means)


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws loss and 100 (loss / loss without routing - 1) at the middle of each eighth.

    Both are means over seeds; runs are paired: a run is compared with the no-routing run of its own
    seed. Below zero the router helps; bands are 95 % t intervals over seeds, of two seeds what lies
    between them. The coloured settings set the axes, grey ones may leave them. Where R-TR is far
    off, a third panel shows the others alone.
    """
    pairs = _pairs(runs)
    relative = _relative(pairs)
    every = settings([run for run, _ in pairs])
    front = highlighted(every)
    numbers = []
    for setting in every:
        rows = relative[relative.run.isin([run.path for run in setting.runs])]
        row = {"setting": setting.label, "router": setting.router, "alpha": setting.alpha}
        row |= {"beta": setting.beta, "seeds": len(setting.runs), "coloured": setting in front}
        mean = _over_seeds(rows)
        numbers.append(pd.DataFrame(row | {column: mean[column] for column in mean}))
    table = pd.concat(numbers, ignore_index=True)

    coloured = table[table.coloured]
    random = coloured[coloured.router == "RTR"].percent.abs().max()
    others = coloured[coloured.router != "RTR"].percent.abs().max()
    figure = new_figure(WIDE, 2.6)
    curves, *axes = figure.subplots(1, 3 if random > 3 * others else 2)
    styles = dict(zip(map(id, front), lines([s.router for s in front]), strict=True))
    plain = settings({b.path: b for _, b in pairs}.values())
    for setting in plain if len(plain) == 1 else ():
        mean = table[["t_first", "t_last", "loss_no_routing"]].drop_duplicates("t_first")
        middle = (mean.t_first + mean.t_last + 1) / 2
        (style,) = lines([setting.router])
        style |= {"label": as_label(setting.label), "zorder": 2}
        curves.plot(middle, mean.loss_no_routing, **style)
    for setting, mean in zip(every, numbers, strict=True):
        style = {**GREY, "zorder": 1}
        if id(setting) in styles:
            style = {**styles[id(setting)], "zorder": 3, "label": as_label(setting.label)}
        middle = (mean.t_first + mean.t_last + 1) / 2
        curves.plot(middle, mean.loss, **style)
        for ax in axes:
            if ax is axes[0] or setting.router != "RTR":
                ax.plot(middle, mean.percent, **style)
                if id(setting) in styles:
                    band(ax, middle, mean, style["color"])
    name = "timestep t (0 = cleanest), in eighths" if len(axes) == 1 else "timestep t, in eighths"
    for ax in axes:
        ax.axhline(0, color="black", linewidth=0.8, zorder=2)
        shown = coloured if ax is axes[0] else coloured[coloured.router != "RTR"]
        most = 2 * shown.percent.abs().max()  # the intervals of three seeds may reach far
        several = shown[shown.seeds > 2]
        ends = [*several.low.clip(lower=-most), *several.high.clip(upper=most)]
        score_axis(ax, [*shown.lowest, *shown.highest, *ends], log=False)
    for ax in (curves, *axes):
        range_ticks(ax, [*table.t_first, table.t_last.max() + 1])
        ax.set_xlabel(name)
    log = score_axis(curves, [*coloured.loss, *coloured.loss_no_routing], log=True)
    if rest := len(every) - len(front):
        curves.plot([], [], **GREY, label=f"others ({rest})")
    curves.set_ylabel(f"held-out loss{chr(10) + '(log scale)' if log else ''}")
    axes[0].set_ylabel("loss against no routing\n(%, below 0 helps)")
    if len(axes) == 2:
        axes[1].set_title("without R-TR", fontsize=7)
    legend(figure)
    skipped = len(runs) - len({r.path for pair in pairs for r in pair})
    note = (
        f"left out {skipped} runs without a no-routing twin or finite held-out losses on the way"
        if skipped
        else ""
    )
    caption(figure, of_seeds(table.seeds, spread=f"; {of_bands(table.seeds)}"), note)
    return Drawing(figure, table, note)
