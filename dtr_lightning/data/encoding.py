"""Images on their way into a store: encoded by a codec, mirrored ones too, with their captions."""

__all__ = ["EncodedCaptions", "EncodedImages"]

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dtr_lightning.data.base import Data, Split
from dtr_lightning.data.clip import CLIPText
from dtr_lightning.data.codec import VAE, Codec, Pixels
from dtr_lightning.data.store import NULL, OFFSETS, TEXTS, TOKENS, Manifest
from dtr_lightning.data.store_writer import Block, Part, Source
from dtr_lightning.errors import UserError

BLOCK = 512
TOGETHER = 4  # images or captions that one thread of a CPU encodes at a time


class EncodedCaptions:
    """The captions of images as the features of CLIP's tokens, float16.

    Args:
        captions: those of every image, training images first.
        clip: the text encoder.
    """

    def __init__(self, captions: Sequence[Sequence[str]], clip: CLIPText) -> None:
        self.clip = clip
        self.texts = [text for of_image in captions for text in of_image]
        self.offsets = np.cumsum([0, *map(len, captions)], dtype=np.int64)

    def facts(self) -> dict[str, Any]:
        """Returns what a manifest says of the captions."""
        which = sha256(self.offsets.tobytes() + self._lines())
        return {
            "captions": len(self.texts),
            "captions_digest": which.hexdigest()[:12],
            "tokens": self.clip.shape,
            "clip": self.clip.digest,
            "clip_path": self.clip.path,
        }

    def files(self, device: torch.device | str) -> dict[str, bytes]:
        """Returns the files of a store beside the tokens."""
        null = self.clip.encode([""], device)[0].half().cpu().numpy()
        return {OFFSETS: _npy(self.offsets), NULL: _npy(null), TEXTS: self._lines()}

    def _lines(self) -> bytes:
        return "".join(f"{text}\n" for text in self.texts).encode()


def _npy(array: np.ndarray) -> bytes:
    file = BytesIO()
    np.lib.format.write_array(file, array, version=(1, 0))
    return file.getvalue()


def _images_of(split: str) -> Split:
    """Returns the split of the images that a part of a store is made of."""
    return "train" if split == "train" else "val"


class EncodedImages(Source):
    """The images of a data set as a codec stores them.

    Args:
        data: the images, as pixels.
        codec: Pixels, or a VAE.
        mirrored: whether training images are to be seen left to right too.
        device: where images are encoded, in float32.
        preparation: how the images became squares, in words.
        source: where they are, in words.
        block: images of a block.
        threads: that encode at the same time on a CPU. Where PyTorch itself is left one, as
            make_latents.py leaves it, what is stored does not depend on how many they are.
        captions: of the images.
    """

    def __init__(
        self,
        data: Data,
        codec: Codec,
        mirrored: bool = True,
        device: torch.device | str = "cpu",
        preparation: str = "",
        source: str = "",
        block: int = BLOCK,
        threads: int = 1,
        captions: EncodedCaptions | None = None,
    ) -> None:
        if not isinstance(data.codec, Pixels):
            raise UserError(f"{data.name} holds latents already; give the images themselves")
        if data.captions is not None:
            raise UserError(f"{data.name} has captions of its own, which a store does not hold")
        self.data, self.codec, self.device = data, codec, device
        self.mirrored, self.captions = mirrored, captions
        self.pool = ThreadPoolExecutor(threads)
        latents: dict[str, Any] = {}
        shape = data.shape
        if isinstance(codec, VAE):
            shape = codec.latent_shape(data.shape)
            latents = {
                "vae": codec.digest,
                "vae_path": codec.path,
                "scale": codec.scale,
                "shift": codec.shift,
                "input_range": (float(codec.low), float(codec.high)),
            }
        self.manifest = Manifest(
            codec=type(codec).__name__,
            shape=shape,
            image_shape=data.shape,
            train=len(data.split("train")),
            val=len(data.split("val")),
            mirrored=mirrored,
            class_names=tuple(data.class_names),
            block=block,
            preparation=preparation,
            source=source,
            source_digest=data.digest(),
            **latents,
            **({} if captions is None else captions.facts()),
        )

    def files(self) -> dict[str, bytes]:
        """Returns the files of the captions."""
        return {} if self.captions is None else self.captions.files(self.device)

    def made_of(self, block: Block) -> str:
        """Returns a digest of the images of a block, or of the texts of captions."""
        rows = range(block.start, block.stop)
        if self.captions is not None and block.split == TOKENS:
            texts = "".join(f"{self.captions.texts[i]}\n" for i in rows)
            return sha256(texts.encode()).hexdigest()[:12]
        return self.data.digest_of(_images_of(block.split), rows)

    def parts(self, split: str, indices: list[Tensor]) -> Iterator[Part]:
        """Yields moments float16, or pixels uint8, of these images, or the tokens of captions."""
        if split == TOKENS:
            yield from self._tokens(indices)
            return
        both = self.mirrored and split == "train" and isinstance(self.codec, VAE)
        for images, labels in self.data.chosen_batches(_images_of(split), indices):
            images = images.to(self.device)
            flipped = self._stored(images.flip(-1)) if both else None
            yield Part(self._stored(images), flipped, labels.numpy())

    def _stored(self, images: Tensor) -> np.ndarray:
        if not isinstance(self.codec, VAE):
            return self.codec.encode(images).cpu().numpy()
        return self._in_threads(self.codec.encode, images).half().cpu().numpy()

    def _tokens(self, indices: list[Tensor]) -> Iterator[Part]:
        assert self.captions is not None
        texts, clip = self.captions.texts, self.captions.clip
        for rows in indices:
            words = clip.words([texts[i] for i in rows.tolist()]).to(self.device)
            yield Part(self._in_threads(clip.features, words).half().cpu().numpy())

    def _in_threads(self, encode: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Returns what `encode` makes of all rows; on a CPU a few at a time, in threads."""
        if rows.device.type != "cpu":
            return encode(rows)
        return torch.cat([*self.pool.map(encode, rows.split(TOGETHER))])
