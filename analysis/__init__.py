"""Figures and tables of the DTR paper from run directories; nothing here trains a model."""

__all__ = ["Drawn", "draw_all"]

from typing import Any


def __getattr__(name: str) -> Any:
    """Imports what draws only when it is asked for: pandas and matplotlib take seconds."""
    if name in __all__:
        from analysis import draw

        return getattr(draw, name)
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")
