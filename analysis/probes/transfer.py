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
from analysis.figures.negative_transfer import intervals, pairs, told
from analysis.measure.probe import artifact, write
from analysis.read.runs import Finished
from analysis.read.settings import settings
from analysis.read.statistics import t_interval
from dtr_lightning.cli.progress_bar import Bar
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.run import to_json

TITLE = "Negative transfer by score"
FILE = "transfer.json"  # in the artifacts of the run of experts: {what was drawn: score}
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
    """Returns the pairs of which the checkpoints are there."""

    def kept(experts: Finished, joint: Finished) -> bool:
        parts = [experts.expert(interval) for interval in intervals(experts)]
        return all(run.last.is_file() for run in (joint, *parts))

    return [pair for pair in pairs(runs) if kept(*pair)]


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: a run of experts and a joint run, both with their checkpoints."""
    if _usable(runs):
        return None
    return "needs a run of experts (--experts 4) and its joint run, with their checkpoints"


def _stored(experts: Finished) -> dict[str, float | None]:
    """Returns {what was drawn: score, None if not finite}; empty without a sound file."""
    try:
        found = json.loads(artifact(experts, FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _keys(pair: Pair, protocol: TransferConfig) -> list[str]:
    """Returns what tells a score of each range from others: protocol, and both runs' training."""
    experts, joint = pair
    how = joint.results["protocol"] | {"n": protocol.n or joint.results["n"]}
    steps = [run.results["steps"] for run in pair]
    return [
        json.dumps([how, joint.hash_without(), steps, interval], sort_keys=True)
        for interval in (None, *intervals(experts))
    ]


def _measure(pair: Pair, protocol: TransferConfig, bar: Bar) -> None:
    """Samples from the joint model, and with each expert in its range; stores each score."""
    # Lightning takes seconds to import; what is stored already does without.
    from dtr_lightning.experiment.load import TrainedRun, other_protocol
    from dtr_lightning.models import RangeExperts

    def trained(run: Finished) -> TrainedRun:
        options = [f"--evaluation.n={protocol.n}"] if protocol.n else []
        config = other_protocol(run, options)
        return TrainedRun(run, config | {"module": config["module"] | {"compile": False}})

    experts, joint = map(trained, pair)
    whole, networks = joint.module.model, experts.module.model.networks
    T, n = joint.module.diffusion.T, joint.experiment.protocol.n
    ranges = [None, *intervals(pair[0])]
    total, done = len(ranges) * joint.experiment.sampling_work(), 0

    def report(images: int) -> None:
        nonlocal done
        done += images
        bar(done, total, f"transfer {pair[0].path.name}")

    for key, interval, i in zip(_keys(pair, protocol), ranges, count(-1)):
        if key in _stored(pair[0]):
            report(joint.experiment.sampling_work())
            continue
        if interval:
            low, high = interval
            parts = [(whole, (0, low)), (networks[i], interval), (whole, (high, T))]
            parts = [part for part in parts if part[1][0] < part[1][1]]
            joint.module.model = RangeExperts(*zip(*parts, strict=True)).to(joint.device)
        scores, *_ = joint.experiment.evaluate(joint.trainer, joint.module, n, 1, report)
        content = to_json(_stored(pair[0]) | {key: scores["score"]})
        write(artifact(pair[0], FILE), lambda file, content=content: file.write(content.encode()))


def _scores(pair: Pair, protocol: TransferConfig) -> list[float]:
    """Returns the score of the joint model, and with each expert in its range."""
    if not _stored(pair[0]).keys() >= {*_keys(pair, protocol)}:
        with Bar("transfer") as bar:
            _measure(pair, protocol, bar)
    found = _stored(pair[0])
    scores = [found[key] for key in _keys(pair, protocol)]
    return [math.nan if score is None else score for score in scores]


def _gaps(found: Sequence[Pair], protocol: TransferConfig) -> pd.DataFrame:
    """Returns a row per range: mean scores over seeds, their gap, and its 95 % t interval."""
    ranges = intervals(found[0][0])
    joint, *mixed = zip(*(_scores(pair, protocol) for pair in found), strict=True)
    rows = []
    for (low, high), scores in zip(ranges, mixed, strict=True):
        gaps = [a - b for a, b in zip(joint, scores, strict=True)]
        row = {"t_first": low, "t_last": high - 1, "seeds": len(gaps)}
        row |= {"score_joint": sum(joint) / len(gaps), "score_expert": sum(scores) / len(gaps)}
        bottom, top = t_interval(gaps)
        rows.append(row | {"gap": sum(gaps) / len(gaps), "low": bottom, "high": top})
    return pd.DataFrame(rows)


@styled
def draw(runs: Sequence[Finished], protocol: TransferConfig | None = None) -> Drawing:
    """Draws the gap per range of an expert, a panel per setting; bars: 95 % t intervals of seeds.

    All scores are of samples from equal noise and labels.
    """
    protocol = protocol or TransferConfig()
    joint, failed, numbers = {e.path: j for e, j in _usable(runs)}, [], []
    for setting in settings([run for run in runs if run.path in joint]):
        own = [(run, joint[run.path]) for run in setting.runs]
        try:
            table = _gaps(own, protocol)
        except UserError as error:
            failed.append(f"left out {setting.label}: {error}")
            continue
        row: dict[str, Any] = {"setting": setting.label, "against": told(*own[0])}
        row |= {
            "score_name": own[0][1].results["score_name"],
            "n": protocol.n or own[0][1].results["n"],
        }
        numbers.append(pd.DataFrame(row | {c: table[c] for c in table}))
    if not numbers:
        raise UserError(f"transfer: nothing to draw: {'; '.join(failed)}")
    figure = new_figure(WIDE, 2.2)
    axes = figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
    for ax, table in zip(axes, numbers, strict=True):
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
        range_ticks(ax, [*table.t_first, table.t_last.max() + 1], most=8 // len(numbers) + 1)
        panel_title(ax, *table.against[0].split("\n"), width=36)
    name, n = numbers[0][["score_name", "n"]].iloc[0]
    what = "joint model less with\nthe specialist in its range"
    axes[0].set_ylabel(f"{name} (N = {n:,}):\n{what}\nabove 0: negative transfer")
    table, note = pd.concat(numbers, ignore_index=True), "; ".join(failed)
    bars = "bars: 95 % t interval" * bool(table.seeds.max() > 1)
    caption(figure, of_seeds(table.seeds, (name, n)), bars, note)
    return Drawing(figure, table, note)
