"""Optuna's samplers and pruners by the names that a sweep's YAML has for them."""

__all__ = ["make_pruner", "make_sampler"]

import inspect
import warnings
from collections.abc import Mapping
from hashlib import sha256
from types import NoneType
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    SuccessiveHalvingPruner,
)
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)

from dtr_lightning.errors import UserError, choices
from sweeps.engine.recipe import Recipe
from sweeps.engine.values import named, one_line, shown

SAMPLERS: dict[str, type[BaseSampler]] = {
    "random": RandomSampler,
    "tpe": TPESampler,
    "cmaes": CmaEsSampler,
    "nsga2": NSGAIISampler,
}
PRUNERS: dict[str, type[BasePruner]] = {
    "median": MedianPruner,
    "halving": SuccessiveHalvingPruner,
    "hyperband": HyperbandPruner,
}
# Some axes exist for some choices only, and several trials run at once.
DEFAULTS = {"tpe": {"multivariate": True, "group": True, "constant_liar": True}}
TYPES = {"bool": bool, "int": int, "float": int | float, "str": str, "None": NoneType}
GENERATIONS = 5  # of a genetic search, if its budget is in trials


def make_sampler(recipe: Recipe, number: int) -> BaseSampler:
    """Returns the sampler for one trial, seeded by the trial's number.

    A sampler that is seeded once would repeat its proposals when a sweep goes on. CMA-ES begins at
    the first start, and in the middle of the axes that it leaves out. UserError for an option that
    Optuna's sampler does not have.
    """
    options = DEFAULTS.get(recipe.kind, {}) | recipe.sampler
    if recipe.kind == "nsga2" and recipe.trials:
        options = {"population_size": max(2, recipe.trials // GENERATIONS)} | options
    digest = sha256(f"{recipe.name} {number}".encode()).digest()
    options |= {"seed": int.from_bytes(digest[:4], "big")}
    start = {"x0": _first(recipe)} if recipe.kind == "cmaes" and recipe.assignments else {}
    return _make(SAMPLERS[recipe.kind], options, "sampler", **start)


def _first(recipe: Recipe) -> dict[str, Any]:
    """Returns Optuna's parameters of the first start."""
    params: dict[str, Any] = {}
    for key, axis in recipe.space.items():
        start = recipe.assignments[0]
        params |= axis.params(key, start[key]) if key in start else axis.middle(key)
    return params


def make_pruner(recipe: Recipe) -> BasePruner:
    """Returns the pruner of a sweep; UserError for an option that Optuna's does not have."""
    if recipe.pruning is None:
        return NopPruner()
    options = dict(recipe.pruning)
    if (kind := options.pop("kind", None)) not in [*PRUNERS]:
        raise choices("kind of pruning", named(kind), PRUNERS)
    return _make(PRUNERS[kind], options, "pruning")


def _make(cls: type, options: Mapping[str, Any], what: str, **fixed: Any) -> Any:
    """Returns an Optuna object made of a person's options, which are checked, and of fixed ones."""
    takes = inspect.signature(cls).parameters
    for key, value in options.items():
        if key not in (valid := [*takes]):
            raise choices(f"option of {what}", named(key), valid)
        # Optuna itself would fail in the middle of a sweep
        hint = takes[key].annotation
        hint = hint if isinstance(hint, str) else inspect.formatannotation(hint)
        words = [word for word in hint.split(" | ") if word in TYPES]
        if not any(
            isinstance(value, TYPES[w]) and (w == "bool") == isinstance(value, bool) for w in words
        ):
            valid = " or ".join(words) or "left out"
            raise UserError(f"{what}: {key} must be {valid}, not {shown(value)}")
    try:
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            # x0 and sigma0 are deprecated
            warnings.filterwarnings("ignore", "`(x0|sigma0)`", FutureWarning)
            return cls(**options, **fixed)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} {shown(dict(options))}: {one_line(error)}") from error
