"""Reading the .npz files that a run keeps."""

__all__ = ["read_arrays"]

import zipfile
import zlib
from pathlib import Path

import numpy as np


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz by name, all read; ValueError where the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(" ".join(str(error).split()) or "damaged") from error
