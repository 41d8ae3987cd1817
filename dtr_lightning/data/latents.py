"""Data that are read from a store, which make_latents.py writes."""

__all__ = ["Latents", "PixelStore"]

import json
import os
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from dtr_lightning.data.base import Data, Split
from dtr_lightning.data.codec import VAE, Posterior
from dtr_lightning.data.store import SPLITS, StoredSplit, read_manifest
from dtr_lightning.errors import UserError


class _Store(Data):
    """What a store of either kind has in common; `kind` is the codec it holds."""

    kind: str
    split_class: type[StoredSplit] = StoredSplit

    def __init__(self, root: str | Path, batch_size: int, flip: bool | None, workers: int) -> None:
        self.root = root
        self.folder = Path(root).expanduser()
        self.manifest = read_manifest(self.folder)
        codec = self.manifest.codec
        if codec != self.kind:
            right = {"VAE": "Latents", "Pixels": "PixelStore"}.get(codec, codec)
            raise UserError(
                f"{root} is a store of {'latents' if codec == 'VAE' else 'pixels'}; give "
                f"--data {right}"
            )
        if flip and codec == "VAE" and not self.manifest.mirrored:
            raise UserError(
                f"{root} has no latents of mirrored images; leave --data.flip out, or make the "
                "store with --flips yes"
            )
        super().__init__(batch_size, self.manifest.mirrored if flip is None else flip, workers)
        self.in_channels, height, width = self.manifest.shape
        if height != width:
            raise UserError(f"{root} holds images of {height} x {width}; valid: squares")
        self.image_size, self.class_names = height, self.manifest.class_names
        self.num_classes = len(self.class_names)
        if codec == "VAE":
            sizes = " x ".join(map(str, self.manifest.shape))
            self.left_out = f"; latents of {sizes} by the autoencoder {self.manifest.vae}"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.manifest.image_shape

    @cached_property
    def splits(self) -> dict[Split, StoredSplit]:
        """The open files."""
        return {name: self.split_class(self.folder, self.manifest, name) for name in SPLITS}

    def split(self, name: Split) -> StoredSplit:
        """Returns one split of (what is stored, label), in the order of the source."""
        return self.splits[name]

    def class_counts(self) -> list[int]:
        """Returns how many training images each class has; UserError for an unknown label."""
        if self._class_counts is None:
            labels = self.splits["train"].labels
            low, high = int(labels.min()), int(labels.max())
            if not 0 <= low <= high < self.num_classes:
                raise UserError(
                    f"{self.root} has labels from {low} to {high}, but {self.num_classes} classes"
                )
            self._class_counts = np.bincount(labels, minlength=self.num_classes).tolist()
        return self._class_counts

    def digest(self) -> str:
        """Returns a digest of what is stored, wherever the store and the autoencoder lie."""
        text = json.dumps(self.manifest.identity(), sort_keys=True)
        return sha256(text.encode()).hexdigest()[:12]

    def reference_file(self, key: str) -> Path:
        """Returns the file of the store that keeps statistics of its images under a key."""
        return self.folder / f"reference-{key}"


class PixelStore(_Store):
    """Pixels in one memory-mapped file, as `make_latents.py IMAGES --codec pixels` stores them.

    Args:
        root: the store.
        batch_size: images per step, all ranks together.
        flip: whether half of the images are mirrored, left to right; null: as the store was made.
        workers: processes that read images; 0: the training's own.
    """

    kind = "Pixels"

    def __init__(
        self,
        root: str | Path,
        batch_size: int = 256,
        flip: bool | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__(root, batch_size, flip, workers)


class Latents(_Store):
    """Latents of a VAE in memory-mapped files, as `make_latents.py IMAGES --vae DIR` stores them.

    Args:
        root: the store.
        vae: where its autoencoder lies, a folder or a name on the Hugging Face hub; null: where it
            was when the store was made.
        posterior: sample draws the latents from the autoencoder's posterior at every training step,
            mean takes their mean.
        batch_size: images per step, all ranks together.
        flip: whether half of the images are mirrored, left to right; null: as the store was made.
        workers: processes that read latents; 0: the training's own.
    """

    kind = "VAE"

    def __init__(
        self,
        root: str | Path,
        vae: Path | str | None = None,
        posterior: Posterior = "sample",
        batch_size: int = 256,
        flip: bool | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__(root, batch_size, flip, workers)
        manifest = self.manifest
        self.vae, self.posterior = vae, posterior
        self.codec = VAE(
            os.path.expanduser(vae or manifest.vae_path or ""),
            posterior,
            manifest.vae,
            manifest.scale,
            manifest.shift,
            manifest.input_range,
        )
