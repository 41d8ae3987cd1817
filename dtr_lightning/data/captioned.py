"""Latents with captions, read from a store: the data of text-to-image training, as MS-COCO."""

__all__ = ["CaptionTable", "CaptionedLatents", "StoredCaptions"]

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dtr_lightning.data.base import Batch, Split
from dtr_lightning.data.captions import Captions
from dtr_lightning.data.clip import CLIPText
from dtr_lightning.data.codec import Posterior
from dtr_lightning.data.latents import Latents
from dtr_lightning.data.store import OFFSETS, Manifest, StoredSplit, copy_rows, open_array
from dtr_lightning.errors import UserError


class CaptionTable:
    """The tokens of a store's captions, by image (training images first) and number of caption.

    UserError where a file is not what the manifest says.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.train, self.val = manifest.train, manifest.val
        arrays = (open_array(folder / array.file, array) for array in manifest.caption_arrays)
        self.rows, offsets, self.null = arrays
        self.counts = np.diff(offsets)
        self.first = offsets[:-1]
        if offsets[0] or offsets[-1] != manifest.captions or self.counts.min() < 1:
            raise UserError(f"{folder / OFFSETS} is damaged; make the store anew")

    def tokens(self, images: Tensor, which: Tensor) -> Tensor:
        """Returns float16 (N, L_text, C_text): of images (N,) the captions number which (N,).

        A number counts modulo the image's captions.
        """
        numbers = images.numpy()
        rows = self.first[numbers] + which.numpy() % self.counts[numbers]
        tokens = np.empty((len(rows), *self.rows.shape[1:]), self.rows.dtype)
        copy_rows(self.rows, rows, rows.argsort(), tokens)
        return torch.from_numpy(tokens)


class CaptionedSplit(StoredSplit):
    """One split of a store with captions; the label of an image is its number in the store."""

    def __init__(self, folder: Path, manifest: Manifest, name: Split) -> None:
        super().__init__(folder, manifest, name)
        self.table = CaptionTable(folder, manifest)
        self.start = 0 if name == "train" else manifest.train

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return super().__getitem__(i)[0], self.start + i

    def batch(
        self, indices: Tensor, flips: Tensor | None = None, which: Tensor | None = None
    ) -> Batch:
        """Returns what is stored of these images, and the tokens of their captions number which.

        Where `which` is None, the labels.
        """
        stored, _ = super().batch(indices, flips)
        images = self.start + indices
        return stored, images if which is None else self.table.tokens(images, which)


class StoredCaptions(Captions):
    """The captions of a store, of which a label is the number of an image; other texts by CLIP.

    Sample i is told by held-out image i mod N, caption i // N.

    Args:
        table: opens the captions when they are asked for; texts need none. It must be a function,
            as the average of the weights copies whatever else a module holds.
        null: tokens (L_text, C_text) of the empty text.
        clip: the text encoder.
    """

    def __init__(self, table: Callable[[], CaptionTable], null: Tensor, clip: CLIPText) -> None:
        super().__init__()
        self.table, self.clip = table, clip
        self.register_buffer("null", null.float(), persistent=False)

    def draw(self, n: int, device: torch.device) -> Tensor:
        """Draws numbers int64 (n,) that are large: they count modulo an image's captions."""
        return torch.randint(2**31, (n,), device=device)

    def forward(self, labels: Tensor, which: Tensor) -> Tensor:
        """Returns tokens float32 (N, L_text, C_text) of captions which (N,) of images (N,)."""
        return self.table().tokens(labels.cpu(), which.cpu()).to(labels.device).float()

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Returns tokens float32 (N, L_text, C_text) of texts, rounded as the stored ones are."""
        return self.clip.encode(texts, self.null.device).half().float()

    def sample_labels(self, n: int) -> Tensor:
        """Returns the held-out images int64 (n,), one after the other and over again."""
        table = self.table()
        return table.train + torch.arange(n) % table.val

    def sample_numbers(self, seed: int, indices: Sequence[int]) -> Tensor:
        """Returns i // N for every index i: the first captions first."""
        return torch.tensor(indices) // self.table().val

    def describe(self) -> dict[str, Any]:
        """Returns the rule of the prompts, and the text encoder's digest."""
        rule = "held-out image i mod N, caption i // N"
        return {"prompts": rule, "clip": self.clip.digest}

    def record(self) -> dict[str, Any]:
        """Returns where the text encoder is, its digest, and the shape of an encoded text."""
        shape = list(self.null.shape)
        return {"path": self.clip.path, "digest": self.clip.digest, "shape": shape}

    @classmethod
    def of_record(
        cls, record: Mapping[str, Any], clip: str | None, table: Callable[[], CaptionTable]
    ) -> "StoredCaptions":
        """Returns the captions of a run whose store may be elsewhere, by what `record` told of it.

        clip is where the text encoder is now, None: where it was. The empty text is zeros, as the
        network has its own.
        """
        encoder = CLIPText(clip or record["path"], record["digest"])
        return cls(table, torch.zeros(record["shape"]), encoder)


class CaptionedLatents(Latents):
    """Latents told by captions, as `make_latents.py IMAGES --captions FILE --clip DIR` stores them.

    An image is seen with one of its captions, drawn anew in every epoch.

    Args:
        root: the store.
        vae: where its autoencoder lies, a folder or a name on the Hugging Face hub; null: where it
            was when the store was made.
        clip: where its text encoder lies, alike; only texts that are not in the store need it.
        posterior: sample draws the latents from the autoencoder's posterior at every training step,
            mean takes their mean.
        batch_size: images per step, all ranks together.
        flip: whether half of the images are mirrored, left to right; null: as the store was made.
        workers: processes that read latents and captions; 0: the training's own.
    """

    split_class = CaptionedSplit
    captions: StoredCaptions

    def __init__(
        self,
        root: str | Path,
        vae: Path | str | None = None,
        clip: Path | str | None = None,
        posterior: Posterior = "sample",
        batch_size: int = 256,
        flip: bool | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__(root, vae, posterior, batch_size, flip, workers)
        manifest = self.manifest
        if not manifest.captions:
            raise UserError(
                f"{root} holds no captions; give --data Latents, or make the store with "
                "make_latents.py --captions FILE --clip DIR"
            )
        self.num_classes, self.class_names = 1, ("all",)
        self.clip = clip
        path = os.path.expanduser(clip or manifest.clip_path or "")
        encoder = CLIPText(path, manifest.clip)
        self.caption_counts = self.table.counts[: manifest.train]
        null = torch.from_numpy(np.array(self.table.null))
        self.captions = StoredCaptions(lambda: self.table, null, encoder)
        self.left_out += f"; {manifest.captions:,} captions by the text encoder {manifest.clip}"

    @cached_property
    def table(self) -> CaptionTable:
        """The captions of all images."""
        return CaptionTable(self.folder, self.manifest)

    def class_counts(self) -> list[int]:
        """Returns how many training images there are: captions know no classes."""
        return [self.manifest.train]

    def record(self) -> dict[str, Any]:
        """Returns what a run keeps of its data, and what encodes prompts where no store is."""
        return super().record() | {"text": self.captions.record()}
