"""What a score keeps of its reference images, as a file: they are read and decoded once."""

__all__ = ["Reference", "note_others", "read_reference", "reference_key", "write_reference"]

import json
import logging
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from dtr_lightning.data import Data
from dtr_lightning.data.base import Split
from dtr_lightning.expect import is_own
from dtr_lightning.metrics.features import Features
from dtr_lightning.rundir.arrays import read_arrays
from dtr_lightning.rundir.atomic import replacing

VERSION = 1  # of the file; files of another one are computed again


@dataclass
class Reference:
    """Sums over all reference images, and the rows of some: everything a `Scorer` needs of them.

    Args:
        total: sum of the features, float64 (D,).
        squares: sum of their outer products, float64 (D, D).
        count: reference images, int64 ().
        rows: features that KID, precision and recall keep, (M, D), by their indices.
        index: the indices of these images, int64 (M,).
        thumbnails: that copies are looked for among, uint8 (K, P).
        threshold: distance of copies, float32 ().
        floor: score of the images of the other split, float64 (); nan where there is none.
    """

    total: Tensor
    squares: Tensor
    count: Tensor
    rows: Tensor
    index: Tensor
    thumbnails: Tensor
    threshold: Tensor
    floor: Tensor


NAMES = {field.name for field in fields(Reference)}


def reference_key(
    features: Features, data: Data, limit: int | None, split: Split = "train"
) -> str | None:
    """Returns a digest of what the reference depends on; None for a person's own features.

    What these compute is known to nobody else: their weights have no digest.
    """
    if is_own(features):
        return None
    if limit is not None and limit >= max(len(data.split(name)) for name in get_args(Split)):
        limit = None  # all
    parts = [features.name, features.describe(), limit, data.digest(), data.codec.describe()]
    if split != "train":
        parts.append(split)
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def write_reference(path: Path, key: str, reference: Reference) -> None:
    """Writes a reference whole or, with a note where the folder takes no file, not at all."""
    arrays = {name: tensor.cpu().numpy() for name, tensor in asdict(reference).items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, part.open("wb") as file:
            np.savez(file, version=VERSION, key=np.array(key), **arrays)
    except OSError as error:
        logging.getLogger(__name__).warning(
            "note: the reference is not kept at %s (%s): the next score computes it again",
            path,
            error.strerror,
        )


def note_others(path: Path) -> None:
    """Says so where a reference is not there, but references of other scores are."""
    if not path.exists() and any(path.parent.glob("reference-*")):
        logging.getLogger(__name__).warning(
            "note: the references that %s keeps are of other features or another "
            "--evaluation.reference; this one is computed, and kept too",
            path.parent,
        )


def read_reference(path: Path, key: str) -> Reference | None:
    """Returns a stored reference; None, with a note, if it is damaged, older or of other images."""
    if not path.exists():
        return None
    try:
        arrays = read_arrays(path)
        if int(arrays["version"]) != VERSION:
            raise ValueError(f"version {int(arrays['version'])}, not {VERSION}")
        if str(arrays["key"]) != key:
            raise ValueError(f"of other images or features: {arrays['key']}, not {key}")
        return Reference(**{name: torch.from_numpy(arrays[name]) for name in NAMES})
    except (ValueError, KeyError, TypeError) as error:
        logging.getLogger(__name__).warning(
            "note: %s cannot be used (%s); the reference is computed again", path, error
        )
        return None
