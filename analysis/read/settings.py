"""Settings: runs that differ in their seed alone, and which of them figures show."""

__all__ = ["ALPHA", "Setting", "highlighted", "largest", "not_shown", "settings"]

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from analysis.read.runs import Finished, Recorded, named

ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
AnyRun = TypeVar("AnyRun", bound=Recorded)
DISPLAY_NAMES = {"NoRouting": "no routing", "RTR": "R-TR"}


@dataclass(frozen=True)
class Setting(Generic[AnyRun]):
    """Runs that differ in nothing but their seed; alpha, beta are nan where a router has none."""

    router: str
    alpha: float
    beta: float
    loss_weight: str
    other: str
    runs: tuple[AnyRun, ...]
    several_weights: bool = False  # whether its label names the loss weight

    @property
    def line(self) -> str:
        """What a line over alpha shares, for instance `DTR β=0.8`."""
        beta = "" if math.isnan(self.beta) else f" β={self.beta:g}"
        weight = f" {self.loss_weight}" if self.several_weights else ""
        other = f" {self.other}" if self.other else ""
        return f"{DISPLAY_NAMES.get(self.router, self.router)}{beta}{weight}{other}"

    @property
    def label(self) -> str:
        """Its name in figures, for instance `DTR α=4 β=0.8`."""
        if math.isnan(self.alpha):
            return self.line
        name = DISPLAY_NAMES.get(self.router, self.router)
        return self.line.replace(name, f"{name} {ALPHA}={self.alpha:g}", 1)

    @property
    def scores(self) -> list[float]:
        """The finite scores, one per seed that did not diverge."""
        finished = (run for run in self.runs if isinstance(run, Finished))
        return [run.score for run in finished if math.isfinite(run.score)]

    @property
    def score(self) -> float:
        """The mean of the finite scores; nan if there is none."""
        return float(np.mean(self.scores)) if self.scores else math.nan


def _differing(runs: Sequence[Recorded]) -> list[str]:
    """Returns the keys, beyond the table's own columns, that have several values in these runs.

    An option of a choice, such as `router.clusters`, counts among runs of that choice alone.
    """
    columns = {"seed", "router", "router.alpha", "router.beta", "loss_weight"}
    values = defaultdict(set)
    for run in runs:
        for key, value in run.flat.items():
            if key not in columns:
                choice = run.flat.get(key.split(".")[0]) if "." in key else None
                values[key, choice].add(repr(value))
    return sorted({key for (key, _), distinct in values.items() if len(distinct) > 1})


def _shown(key: str, value: Any) -> str:
    """Returns an option as a label has it: PCGrad, hidden_size=64; empty for gradients Joint."""
    if "." not in key and isinstance(value, str):
        return "" if value == "Joint" else value.rsplit(".", 1)[-1]
    return f"{key.rsplit('.', 1)[-1]}={value}"


def settings(runs: Iterable[AnyRun]) -> list[Setting[AnyRun]]:
    """Groups runs over their seeds: no routing first, R-TR, DTR, then others by name."""
    groups = defaultdict(list)
    for run in runs:
        groups[run.hash_without("seed")].append(run)
    differing = _differing([group[0] for group in groups.values()])
    several_weights = len({run.choice("loss_weight") for run in runs}) > 1
    result = []
    for group in groups.values():
        first = group[0]
        other = [_shown(k, first.flat[k]) for k in differing if k in first.flat]
        result.append(
            Setting(
                router=first.choice("router"),
                alpha=first.option("router.alpha"),
                beta=first.option("router.beta"),
                loss_weight=first.choice("loss_weight"),
                other=" ".join(filter(None, other)),
                runs=tuple(sorted(group, key=lambda run: run.seed)),
                several_weights=several_weights,
            )
        )
    order = {"NoRouting": 0, "RTR": 1, "DTR": 2}

    def rank(setting: Setting) -> tuple:
        numbers = [0.0 if math.isnan(x) else x for x in (-setting.beta, setting.alpha)]
        return order.get(setting.router, 3), setting.router, *numbers, setting.other

    return sorted(result, key=rank)


def highlighted(every: Sequence[Setting]) -> list[Setting]:
    """Returns the settings to draw in colour: all of up to eight, else four.

    These four are no routing, R-TR at beta = 0.8 (the best R-TR if there is none), DTR's defaults
    alpha = 4, beta = 0.8, and the best routed setting that is not R-TR.
    """
    if len(every) <= 8:
        return list(every)
    rules = [
        lambda s: s.router == "NoRouting",
        lambda s: s.router == "RTR" and s.beta == 0.8,
        lambda s: s.router == "RTR",
        lambda s: s.router == "DTR" and (s.alpha, s.beta) == (4.0, 0.8),
        lambda s: s.router not in ("NoRouting", "RTR"),
    ]
    ranked = sorted(every, key=lambda s: (math.isnan(s.score), s.score))
    best = [next(filter(rule, ranked), None) for rule in rules]
    if best[1]:
        best[2] = None
    return [setting for setting in every if any(setting is one for one in best)]


def not_shown(count: int) -> str:
    """Returns one line on how many settings a figure leaves out; empty for none."""
    return f"settings not shown: {count}; name their runs to show them" if count else ""


def largest(
    runs: Sequence[Finished],
    key: Callable[[Finished], Hashable],
    what: str,
    among: Sequence[Finished] = (),
) -> tuple[list[Finished], str]:
    """Returns the runs of the commonest key, and one line on those left out (empty if none).

    `among`, if given, are the runs that are counted.
    """
    keys = [key(run) for run in runs]
    counted, all_runs = Counter(map(key, among or runs)), Counter(keys)
    most = max(counted, key=lambda each: (counted[each], all_runs[each]))
    selected = [run for run, each in zip(runs, keys, strict=True) if each == most]
    others = [run for run, each in zip(runs, keys, strict=True) if each != most]
    return selected, f"left out {named(others)}: {what}" if others else ""
