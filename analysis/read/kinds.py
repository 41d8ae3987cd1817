"""What figures and tables compute with, of each file of a run, and of which kind it must be.

The numbers that a sweep may be about are checked by `Run.results` itself.
"""

__all__ = ["CONFIG", "META", "NEEDED", "RESULTS", "checked", "checked_record"]

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dtr_lightning.errors import UserError


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(of, value))


KINDS: dict[str, Callable[[Any], bool]] = {
    "a number": _is_number,
    "a whole number": _is_whole,
    "a text": _is_text,
    "an object": lambda value: isinstance(value, dict),
    "a list of texts": lambda value: _is_list(value, _is_text),
    "two whole numbers": lambda value: _is_list(value, _is_whole) and len(value) == 2,
    "true or false": lambda value: isinstance(value, bool),
}
OR_NULL = " or null"
CONFIG = {
    **dict.fromkeys(["seed", "trainer.max_steps", "diffusion.T"], "a whole number"),
    **dict.fromkeys(["router.alpha", "router.beta"], "a number or null"),
    **dict.fromkeys(["model", "router", "data", "loss_weight"], "a text"),
}
META = {
    **{"status": "a text or null", "versions": "an object or null"},
    "smoke": "true or false or null",
    **dict.fromkeys(["pruned_at", "pruned_score"], "a number or null"),
}
NEEDED = {"score", "score_name", "n"}
RESULTS = {
    **{"score_name": "a text", "n": "a whole number"},
    **dict.fromkeys(["floor", "overlap"], "a number or null"),
    **dict.fromkeys(["floor_n", "steps", "diverged_at"], "a whole number or null"),
    **{"protocol": "an object or null", "notes": "a list of texts or null"},
    **{"diverged": "a text or null"},
    # what `dtr_lightning.experiment.notes` judges by
    **dict.fromkeys(
        ["reference_n", "copies_n", "held_out_n", "num_features", "num_classes"],
        "a whole number or null",
    ),
    **dict.fromkeys(["imbalance", "chance", "initial_share"], "a number or null"),
    **dict.fromkeys(["smoke", "extractor_random"], "true or false or null"),
    "class_images": "two whole numbers or null",
}


def checked(file: Path, values: dict[str, Any], kinds: Mapping[str, str]) -> dict[str, Any]:
    """Returns what a file holds; UserError for the first value that is not of its kind.

    What is absent is not checked, what has no kind may be anything; a boolean is no number.
    """
    for key, kind in kinds.items():
        if key not in values or (values[key] is None and kind.endswith(OR_NULL)):
            continue
        if not KINDS[kind.removesuffix(OR_NULL)](values[key]):
            shown = json.dumps(values[key])
            shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
            raise UserError(f"{file} is damaged: {key} is {shown}, not {kind}")
    return values


def checked_record(file: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Returns a record of metrics.jsonl; UserError if it holds more than numbers and nulls."""
    return checked(file, record, dict.fromkeys(record, "a number or null"))
