"""Finds the figures: every module of analysis.figures and of analysis.probes draws one.

A figure is a module with TITLE, needs(runs) -> what is missing or None, and draw(runs) -> Drawing.
Its name is the module's. A probe loads networks; one with options has CONFIG, their dataclass,
which draw takes second. A module of your own is a figure too, by its import path.
"""

__all__ = ["FIGURES", "PROBES", "figure", "is_probe", "valid_names"]

import importlib
from collections.abc import Iterable
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from dtr_lightning.errors import UserError, choices

HERE = Path(__file__).parent
FIGURES = tuple(module.name for module in iter_modules([str(HERE / "figures")]))
PROBES = tuple(module.name for module in iter_modules([str(HERE / "probes")]))
TABLES = ("paper_tables", "tables")


def valid_names() -> tuple[str, ...]:
    """Returns what `--only` can name, besides modules of your own."""
    return (*FIGURES, *PROBES, *TABLES)


def is_probe(name: str) -> bool:
    """Returns whether a figure loads networks; it takes time and is drawn only by its name."""
    return name in PROBES


def figure(name: str) -> ModuleType:
    """Imports and returns the module of a figure; UserError for an unknown name."""
    if "." in name:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(f"figure {name}: {error}") from error
        if missing := [part for part in ("TITLE", "needs", "draw") if not hasattr(module, part)]:
            raise UserError(f"figure {name} has no {', '.join(missing)}")
        return module
    if name not in (*FIGURES, *PROBES):
        raise choices("figure", name, valid_names())
    return importlib.import_module(f"analysis.{'probes' if is_probe(name) else 'figures'}.{name}")


def check_names(names: Iterable[str]) -> None:
    """Raises UserError for a name that is neither a figure nor one of the tables."""
    for name in names:
        if name not in TABLES:
            figure(name)
