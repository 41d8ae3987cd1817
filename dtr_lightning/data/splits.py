"""Which sub-folders of a folder of images are its splits."""

__all__ = ["Splits", "find_splits"]

import os
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from dtr_lightning.data.scan import Scan, few
from dtr_lightning.errors import UserError

ROLES = {
    "train": "train|training|trn",
    "val": "val|valid|validation|dev|devel|development|eval|evaluation|heldout|holdout",
    "test": "test|testing|tst",
}
AROUND = "set|split|data|images?|imgs?"
NAMES = {
    role: re.compile(f"(?:seg|ilsvrc|imagenet|{AROUND})*(?:{names})(?:{AROUND})*")
    for role, names in ROLES.items()
}
AS_CLASSES = "give --data.split_folders false if these are classes"


class Splits(NamedTuple):
    """The sub-folders to train on and to hold out, "" for the folder itself, None for neither.

    `unread` are the other sub-folders with images.
    """

    train: str
    held_out: str | None = None
    unread: tuple[str, ...] = ()


def role(name: str) -> str | None:
    """Returns train, val or test for the usual names of a split's folder, in any case."""
    letters = re.sub(r"[\W\d_]", "", name.lower())
    return next((role for role, pattern in NAMES.items() if pattern.fullmatch(letters)), None)


def find_splits(folder: Path, scan: Scan) -> Splits:
    """Returns the splits of a scanned folder; UserError where they cannot be told from classes."""
    places = {place for place, count in scan.folders.items() if count}
    _refuse_inner(folder, places)
    images = {place.partition(os.sep)[0] for place in places if place}
    named: dict[str, list[str]] = {name: [] for name in ROLES}
    for name in sorted(images):
        if (its := role(name)) is not None:
            named[its].append(name)
    train, others = named["train"], sorted(name for name in images if role(name) is None)
    held_out = named["val"] or named["test"]
    for same in (train, held_out):
        if len(same) > 1:
            raise UserError(
                f"{folder} holds {few(same)}, which could each be the same split; keep one "
                f"of them there, or {AS_CLASSES}"
            )
    if train and held_out:
        splits = {train[0], held_out[0]}
        unread = tuple(sorted(images - splits))
        return Splits(_innermost(train[0], places), _innermost(held_out[0], places), unread)
    if train:
        if others and any(os.sep in place for place in places if place.split(os.sep)[0] in train):
            raise UserError(
                f"{folder} holds {train[0]} with folders of images beside {few(others)}; give "
                f"--data.root {folder / train[0]} to train on that, or {AS_CLASSES}"
            )
        if not others and "" not in places:
            tops = [name for name in scan.folders if name and os.sep not in name]
            if empty := [name for name in tops if role(name) in ("val", "test")]:
                raise UserError(
                    f"{folder / empty[0]} holds no images of its own; remove it, and a share of "
                    f"{train[0]} is held out (--data.held_out)"
                )
            return Splits(_innermost(train[0], places))
    if held_out:
        beside = f" beside {few(others)}; move these into a folder train, or {AS_CLASSES}"
        alone = f"; give --data.root {folder / held_out[0]} to train on it"
        raise UserError(f"{folder} holds {held_out[0]} but no train{beside if others else alone}")
    return Splits("")


def _innermost(split: str, places: set[str]) -> str:
    """Returns a split's folder, or the folder of the same split that is all that it holds."""
    while split not in places:
        start = split + os.sep
        below = {
            place.removeprefix(start).partition(os.sep)[0]
            for place in places
            if place.startswith(start)
        }
        name = min(below)
        if len(below) > 1 or role(name) != role(os.path.basename(split)):
            break
        split = os.path.join(split, name)
    return split


def _refuse_inner(folder: Path, places: set[str]) -> None:
    """Raises UserError where splits lie inside other folders, as in cat/train and cat/test."""
    inner: dict[str, dict[str, str]] = defaultdict(dict)
    for place in places:
        parts = place.split(os.sep)
        for depth, name in enumerate(parts[1:], 1):
            if (its := role(name)) is not None:
                inner[os.path.join(*parts[:depth])][its] = name
    both = sorted(place for place, roles in inner.items() if len(roles) > 1 and "train" in roles)
    if len(both) == 1:
        raise UserError(
            f"{folder / both[0]} holds {few(sorted(inner[both[0]].values()))}; give --data.root "
            f"{folder / both[0]}, or {AS_CLASSES}"
        )
    if both:
        raise UserError(
            f"{folder} holds splits inside {few(both)}; the folders of splits are to be around "
            f"those of classes, as in train/{both[0]}, or {AS_CLASSES}"
        )
