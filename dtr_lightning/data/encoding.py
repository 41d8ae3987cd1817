"""Images on their way into a store: encoded by a codec, mirrored ones too."""

__all__ = ["EncodedImages"]

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from dtr_lightning.data.base import Data, Split
from dtr_lightning.data.codec import VAE, Codec, Pixels
from dtr_lightning.data.store import Manifest
from dtr_lightning.data.store_writer import Part, Source
from dtr_lightning.errors import UserError

BLOCK = 512
TOGETHER = 4  # images that one thread of a CPU encodes at a time


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
    ) -> None:
        if not isinstance(data.codec, Pixels):
            raise UserError(f"{data.name} holds latents already; give the images themselves")
        if data.captions is not None:
            raise UserError(f"{data.name} has captions, which a store does not hold")
        self.data, self.codec, self.device = data, codec, device
        self.mirrored, self.pool = mirrored, ThreadPoolExecutor(threads)
        latents = {}
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
        )

    def parts(self, split: Split, indices: list[Tensor]) -> Iterator[Part]:
        """Yields moments float16, or pixels uint8, of these images."""
        both = self.mirrored and split == "train" and isinstance(self.codec, VAE)
        for images, labels in self.data.chosen_batches(split, indices):
            images = images.to(self.device)
            flipped = self._stored(images.flip(-1)) if both else None
            yield Part(self._stored(images), flipped, labels.numpy())

    def _stored(self, images: Tensor) -> np.ndarray:
        if images.device.type == "cpu" and isinstance(self.codec, VAE):
            stored = torch.cat([*self.pool.map(self.codec.encode, images.split(TOGETHER))])
        else:
            stored = self.codec.encode(images)
        return (stored if stored.dtype == torch.uint8 else stored.half()).cpu().numpy()
