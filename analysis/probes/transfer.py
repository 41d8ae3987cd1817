"""Negative transfer by score: a specialist takes over its range of the joint model's sampling.

The gap of Go et al., *Addressing Negative Transfer in Diffusion Models*, 2023, with the runs' own
score in place of FID: score of the joint model less that of the joint model whose steps in one
range are taken by the expert for it. Above zero the specialist is better: negative transfer.
"""

__all__ = ["CONFIG", "TITLE", "TransferConfig", "draw", "needs"]

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import pandas as pd

from analysis.drawing.style import (
    WIDE,
    Drawing,
    caption,
    line_style,
    new_figure,
    of_seeds,
    panel_title,
    range_ticks,
    styled,
)
from analysis.figures.negative_transfer import compared, intervals, pairs
from analysis.measure.load import load
from analysis.measure.probe import artifact
from analysis.read.runs import Finished
from analysis.read.settings import settings
from analysis.read.statistics import t_interval
from dtr_lightning.cli.progress_bar import Bar
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.atomic import writing
from dtr_lightning.rundir.run import to_json

TITLE = "Negative transfer by score"
FILE = "transfer.json"  # in the artifacts of the run of experts: the scores of each range
Pair = tuple[Finished, Finished]  # experts, joint model


@dataclass(frozen=True)
class TransferConfig:
    """How many samples are drawn.

    Args:
        n: samples per range; 0: as many as the runs are scored with.
    """

    n: int = 0

    def __post_init__(self) -> None:
        if self.n < 0 or self.n == 1:
            raise UserError(f"transfer.n must be 0 (the runs' own) or at least 2; got {self.n}")


CONFIG = TransferConfig


def _usable(runs: Sequence[Finished]) -> list[Pair]:
    """Returns the pairs whose checkpoints are there."""

    def complete(experts: Finished, joint: Finished) -> bool:
        parts = [experts.expert(interval) for interval in intervals(experts)]
        return all(run.last.is_file() for run in (joint, *parts))

    return [pair for pair in pairs(runs) if complete(*pair)]


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: a run of experts and a joint run, both with their checkpoints."""
    if _usable(runs):
        return None
    return "needs a run of experts (--experts 4) and its joint run, with their checkpoints"


def _stored(experts: Finished) -> dict[str, float | None]:
    """Returns {key: score, None if not finite}, as `_keys` has them; empty without a sound file."""
    try:
        return json.loads(artifact(experts, FILE).read_text())
    except (OSError, ValueError):
        return {}


def _keys(pair: Pair, config: TransferConfig) -> list[str]:
    """Returns the key of each range's score: its protocol, both runs' training, the range."""
    experts, joint = pair
    protocol = joint.results["protocol"] | {"n": config.n or joint.results["n"]}
    steps = [run.results["steps"] for run in pair]
    return [
        json.dumps([protocol, joint.hash_without(), steps, interval], sort_keys=True)
        for interval in (None, *intervals(experts))
    ]


def _measure(pair: Pair, config: TransferConfig, bar: Bar) -> None:
    """Samples from the joint model, and with each expert in its range; stores each score."""
    from dtr_lightning.models import RangeExperts

    options = [f"--evaluation.n={config.n}"] if config.n else []
    experts, joint = (load(run, options) for run in pair)
    whole, networks = joint.module.model, experts.module.model.networks
    T, n = joint.module.diffusion.T, joint.experiment.protocol.n
    ranges = [None, *intervals(pair[0])]
    work = joint.experiment.sampling_work()
    add = bar.count(len(ranges) * work, f"transfer {pair[0].path.name}")
    for key, interval, i in zip(_keys(pair, config), ranges, count(-1)):
        if key in _stored(pair[0]):
            add(work)
            continue
        if interval:
            low, high = interval
            parts = [(whole, (0, low)), (networks[i], interval), (whole, (high, T))]
            parts = [part for part in parts if part[1][0] < part[1][1]]
            joint.module.model = RangeExperts(*zip(*parts, strict=True)).to(joint.device)
        scores, *_ = joint.experiment.evaluate(joint.trainer, joint.module, n, 1, add)
        with writing(artifact(pair[0], FILE)) as part:
            part.write_text(to_json(_stored(pair[0]) | {key: scores["score"]}) + "\n")


def _scores(pair: Pair, config: TransferConfig) -> list[float]:
    """Returns the score of the joint model, and with each expert in its range."""
    if not _stored(pair[0]).keys() >= {*_keys(pair, config)}:
        with Bar("transfer") as bar:
            _measure(pair, config, bar)
    stored = _stored(pair[0])
    scores = [stored[key] for key in _keys(pair, config)]
    return [math.nan if score is None else score for score in scores]


def _gaps(pairs: Sequence[Pair], config: TransferConfig) -> pd.DataFrame:
    """Returns a row per range: mean scores over seeds, their gap, and its 95 % t interval."""
    ranges = intervals(pairs[0][0])
    joint, *mixed = zip(*(_scores(pair, config) for pair in pairs), strict=True)
    rows = []
    for (low, high), scores in zip(ranges, mixed, strict=True):
        gaps = [a - b for a, b in zip(joint, scores, strict=True)]
        row = {"t_first": low, "t_last": high - 1, "seeds": len(gaps)}
        row |= {"score_joint": sum(joint) / len(gaps), "score_expert": sum(scores) / len(gaps)}
        bottom, top = t_interval(gaps)
        rows.append(row | {"gap": sum(gaps) / len(gaps), "low": bottom, "high": top})
    return pd.DataFrame(rows)


@styled
def draw(runs: Sequence[Finished], config: TransferConfig | None = None) -> Drawing:
    """Draws the gap per range of an expert, a panel per setting; bars: 95 % t intervals of seeds.

    All scores are of samples from equal noise and labels.
    """
    config = config or TransferConfig()
    joint, failed, tables = {e.path: j for e, j in _usable(runs)}, [], []
    for setting in settings([run for run in runs if run.path in joint]):
        seeds = [(run, joint[run.path]) for run in setting.runs]
        try:
            table = _gaps(seeds, config)
        except UserError as error:
            failed.append(f"left out {setting.label}: {error}")
            continue
        row: dict[str, Any] = {"setting": setting.label, "against": compared(*seeds[0])}
        row |= {
            "score_name": seeds[0][1].results["score_name"],
            "n": config.n or seeds[0][1].results["n"],
        }
        tables.append(pd.DataFrame(row | {c: table[c] for c in table}))
    if not tables:
        raise UserError(f"transfer: nothing to draw: {'; '.join(failed)}")
    figure = new_figure(WIDE, 2.2)
    axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for ax, table in zip(axes, tables, strict=True):
        wide = table.t_last - table.t_first + 1
        ax.bar(
            table.t_first,
            table.gap,
            wide,
            align="edge",
            alpha=0.5,
            edgecolor="white",
            color=line_style("DTR", 0)["color"],
        )
        ax.vlines(table.t_first + wide / 2, table.low, table.high, color="black", linewidth=0.8)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_xlabel("timestep t (0 = cleanest)")
        range_ticks(ax, [*table.t_first, table.t_last.max() + 1], most=8 // len(tables) + 1)
        panel_title(ax, *table.against[0].split("\n"), width=36)
    name, n = tables[0][["score_name", "n"]].iloc[0]
    what = "joint model less with\nthe specialist in its range"
    axes[0].set_ylabel(f"{name} (N = {n:,}):\n{what}\nabove 0: negative transfer")
    table, note = pd.concat(tables, ignore_index=True), "; ".join(failed)
    bars = "bars: 95 % t interval" * bool(table.seeds.max() > 1)
    caption(figure, of_seeds(table.seeds, (name, n)), bars, note)
    return Drawing(figure, table, note)
