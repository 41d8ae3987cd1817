"""Results as lines for a person; the JSON has all of them."""

__all__ = ["summary"]

from collections.abc import Mapping
from typing import Any

LEFT_OUT = ("score", "floor", "kid_std", "seconds", "steps_per_second")


def summary(results: Mapping[str, Any]) -> list[str]:
    """Returns the numbers of results.json or of an evaluation, a line each, and their notes."""
    lines = []
    if name := results.get("score_name"):
        score, floor = (_number(results.get(key)) for key in ("score", "floor"))
        about = f"{name} of {results['n']:,} samples, floor {floor}"
        lines.append(f"{'score':<18}{score}  ({about})")
    for key, value in results.items():
        if isinstance(value, float) and key not in LEFT_OUT:
            label = "held-out loss" if key == "loss" else key.replace("_", " ")
            lines.append(f"{label:<18}{_number(value)}")
    return [*lines, *(f"note: {note}" for note in results.get("notes") or ())]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
