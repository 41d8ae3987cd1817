"""A store: images or latents in a few memory-mapped arrays, and a manifest that says what they are.

A directory holds `manifest.json`; of each split `SPLIT.npy`, uint8 pixels (N, C, H, W) or float16
moments (N, 2C, h, w), mean then log variance; `SPLIT_labels.npy` int64 (N,); and of mirrored
training images, whose latents are no mirrored latents, `train_flipped.npy`. With captions there are
`tokens.npy`, float16 (captions, L_text, C_text), those of an image together, of training images
first; `caption_offsets.npy` int64 (images + 1,), where those of each begin; `null.npy`, the tokens
of the empty text; and `captions.txt`, a caption a line.
"""

__all__ = [
    "MANIFEST",
    "NULL",
    "OFFSETS",
    "TEXTS",
    "TOKENS",
    "Array",
    "Manifest",
    "StoredSplit",
    "copy_rows",
    "open_array",
    "read_begun",
    "read_manifest",
]

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dtr_lightning.data.base import Batch, Split
from dtr_lightning.errors import UserError

MANIFEST = "manifest.json"
VERSION = 1
SPLITS: tuple[Split, ...] = ("train", "val")
TOKENS = "tokens"  # the rows of captions, beside those of the splits
OFFSETS, NULL, TEXTS = "caption_offsets.npy", "null.npy", "captions.txt"
# What a manifest leaves out of its file, and of an identity, where there are no captions.
OF_CAPTIONS = ("captions", "captions_digest", "tokens", "clip", "clip_path")


class Array(NamedTuple):
    """What one file of a store holds."""

    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """What a store is.

    Args:
        codec: Pixels or VAE.
        shape: (C, H, W) of what a network sees.
        image_shape: (C, H, W) of the images.
        train: number of training images.
        val: number of held-out images.
        mirrored: whether training images are also seen left to right.
        class_names: in the order of the labels.
        block: images that are written before it is noted that they are there.
        preparation: how images became squares, in words.
        source: where the images were, in words.
        source_digest: which images these were.
        vae: digest of the autoencoder's weights; None for pixels.
        vae_path: where the autoencoder was.
        scale: factor of the latents that the network sees.
        shift: what is subtracted from the latents first.
        input_range: what the autoencoder was given for black and white.
        captions: number of captions, of all images together.
        captions_digest: which captions these are, and of which images.
        tokens: (L_text, C_text) of an encoded caption.
        clip: digest of the text encoder.
        clip_path: where the text encoder was.
        complete: whether everything is there.
        content: digest of the arrays of a complete store.
    """

    codec: str
    shape: tuple[int, int, int]
    image_shape: tuple[int, int, int]
    train: int
    val: int
    mirrored: bool
    class_names: tuple[str, ...]
    block: int
    preparation: str = ""
    source: str = ""
    source_digest: str = ""
    vae: str | None = None
    vae_path: str | None = None
    scale: float = 1.0
    shift: float = 0.0
    input_range: tuple[float, float] = (-1.0, 1.0)
    captions: int = 0
    captions_digest: str = ""
    tokens: tuple[int, int] | None = None
    clip: str | None = None
    clip_path: str | None = None
    complete: bool = False
    content: str | None = None
    version: int = VERSION

    @property
    def arrays(self) -> list[Array]:
        """The files that are written block by block, with what they hold."""
        latents = self.codec == "VAE"
        dtype, channels = ("<f2", 2 * self.shape[0]) if latents else ("|u1", self.shape[0])
        row = (channels, *self.shape[1:])
        arrays = []
        for split in SPLITS:
            n = getattr(self, split)
            arrays.append(Array(f"{split}.npy", dtype, (n, *row)))
            if latents and self.mirrored and split == "train":
                arrays.append(Array("train_flipped.npy", dtype, (n, *row)))
            arrays.append(Array(f"{split}_labels.npy", "<i8", (n,)))
        return [*arrays, self.caption_arrays[0]] if self.tokens else arrays

    @property
    def caption_arrays(self) -> tuple[Array, Array, Array]:
        """The files of captions: their tokens, where those of each image begin, the empty text."""
        assert self.tokens is not None
        tokens = Array(f"{TOKENS}.npy", "<f2", (self.captions, *self.tokens))
        offsets = Array(OFFSETS, "<i8", (self.train + self.val + 1,))
        return tokens, offsets, Array(NULL, "<f2", self.tokens)

    @property
    def rows(self) -> dict[str, int]:
        """How many rows are written of each split, and of captions."""
        return {"train": self.train, "val": self.val, TOKENS: self.captions}

    def identity(self) -> dict[str, Any]:
        """Returns what makes two stores the same to a training, wherever they and the VAE lie."""
        keys = ("codec", "shape", "class_names", "mirrored", "vae", "scale", "shift", "content")
        more = ("captions_digest", "clip") if self.captions else ()
        return {key: getattr(self, key) for key in (*keys, *more)}

    def text(self) -> str:
        """Returns the file's text; the last entry is a digest of all others."""
        left_out = () if self.captions else OF_CAPTIONS
        kept = {key: value for key, value in asdict(self).items() if key not in left_out}
        values = json.loads(json.dumps(kept))
        return json.dumps(values | {"digest": _digest(values)}, indent=1) + "\n"


def _digest(values: Mapping[str, Any]) -> str:
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def read_begun(folder: Path) -> Manifest | None:
    """Returns the manifest of a store that may not be complete; None where there is none.

    UserError for one of another version, or one that was edited or damaged.
    """
    file = folder / MANIFEST
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {error}; make the store anew") from error
    version = values.get("version") if isinstance(values, dict) else None
    if version != VERSION:
        raise UserError(
            f"{file} is of version {version}; valid: {VERSION}. Make the store anew with "
            "make_latents.py"
        )
    digest = values.pop("digest", None)
    left_out = () if "captions" in values else OF_CAPTIONS
    known = {field.name for field in fields(Manifest)} - {*left_out}
    if digest != _digest(values) or values.keys() != known:
        raise UserError(
            f"{file} was edited by hand or damaged: its digest is not {digest}; restore it, or "
            "make the store anew with make_latents.py"
        )
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return Manifest(**(values | lists))


def read_manifest(folder: Path) -> Manifest:
    """Returns the manifest of a complete store; UserError where there is none."""
    if (manifest := read_begun(folder)) is None:
        raise UserError(f"{folder} is no store: it has no {MANIFEST}; make one: make_latents.py")
    if not manifest.complete:
        raise UserError(f"the store {folder} is not complete; go on with the command that began it")
    return manifest


class StoredSplit(Dataset):
    """One split of a store: (stored, label) by index, and whole batches at once.

    UserError where a file is not what the manifest says.
    """

    def __init__(self, folder: Path, manifest: Manifest, name: Split) -> None:
        self.place = folder, manifest, name
        maps = {
            array.file: open_array(folder / array.file, array)
            for array in manifest.arrays
            if array.file.startswith(name)
        }
        self.stored, self.labels = maps[f"{name}.npy"], maps[f"{name}_labels.npy"]
        self.flipped = maps.get(f"{name}_flipped.npy")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.place  # a worker opens the files itself

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.from_numpy(np.array(self.stored[i])), int(self.labels[i])

    def batch(self, indices: Tensor, flips: Tensor | None = None) -> Batch:
        """Returns what is stored (n, ...) of these images, mirrored where `flips` says so.

        Every array is read in the order of its rows, each straight to its place: of a batch that is
        indexed at once NumPy makes another copy, whose memory takes longer to get than to fill.
        """
        rows = indices.numpy()
        order = rows.argsort()
        if flips is None or self.flipped is None:
            parts = [(self.stored, order)]
        else:
            mirrored = flips.numpy()[order]
            parts = [(self.stored, order[~mirrored]), (self.flipped, order[mirrored])]
        stored = np.empty((len(rows), *self.stored.shape[1:]), self.stored.dtype)
        for array, places in parts:
            copy_rows(array, rows, places, stored)
        batch = torch.from_numpy(stored)
        if flips is not None and self.flipped is None:
            batch[flips] = batch[flips].flip(-1)
        return batch, torch.from_numpy(self.labels[rows])


def copy_rows(array: np.ndarray, rows: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
    """Copies row rows[i] of an array to out[i] for the places i, in their order."""
    for place, row in zip(places.tolist(), rows[places].tolist(), strict=True):
        out[place] = array[row]


def open_array(path: Path, array: Array) -> np.ndarray:
    """Returns the memory map of a file; UserError where its size or kind is another."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            assert version == (1, 0)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; the store lacks it") from error
    except (ValueError, AssertionError) as error:
        raise UserError(f"{path} is damaged: it is no .npy file; make the store anew") from error
    if (shape, dtype.str, fortran) != (array.shape, array.dtype, False):
        raise UserError(
            f"{path} holds {dtype} {shape}; the manifest says {np.dtype(array.dtype)} {array.shape}"
        )
    size, expected = path.stat().st_size, offset + dtype.itemsize * int(np.prod(shape))
    if size != expected:
        raise UserError(f"{path} has {size:,} bytes; expected {expected:,}: make the store anew")
    return np.asarray(np.memmap(path, dtype, "r", offset, shape))
