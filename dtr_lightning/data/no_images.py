"""Sizes without images: the data of a network that was trained elsewhere."""

__all__ = ["NoImages"]

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dtr_lightning.data.base import Data, Split
from dtr_lightning.data.captions import Captions
from dtr_lightning.errors import UserError


class _NoCaptions(Captions):
    """The sizes of captions that are not here: zeros stand for the empty text."""

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("null", torch.zeros(tokens, channels), persistent=False)

    def draw(self, n: int, device: torch.device) -> Tensor:
        """Raises UserError: there are no captions."""
        self._refuse()

    def forward(self, labels: Tensor, which: Tensor) -> Tensor:
        """Raises UserError: there are no captions."""
        self._refuse()

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Raises UserError: there is no text encoder."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UserError("there are no captions and no text encoder (data: NoImages); give --data")


class NoImages(Data):
    """The sizes of images that are not here: a network can be sampled from, not trained or scored.

    Args:
        in_channels: of an image, or of a latent.
        image_size: pixels a side.
        num_classes: 1 is unconditional.
        batch_size: images per step of the training, wherever it was.
        text_tokens: of a caption, for a network that is told by text; 0: no captions.
        text_channels: of each of these tokens.
    """

    has_images = False

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        num_classes: int = 1,
        batch_size: int = 256,
        text_tokens: int = 0,
        text_channels: int = 0,
    ) -> None:
        super().__init__(batch_size, flip=False)
        sizes = {"in_channels": in_channels, "image_size": image_size, "num_classes": num_classes}
        for name, size in sizes.items():
            if size < 1:
                raise UserError(f"data.{name} must be at least 1; got {size}")
        self.in_channels, self.image_size = in_channels, image_size
        self.num_classes = num_classes
        self.class_names = tuple(map(str, range(num_classes)))
        if text_tokens or text_channels:
            if text_tokens < 1 or text_channels < 1:
                raise UserError("data.text_tokens and data.text_channels belong together, from 1")
            self.captions = _NoCaptions(text_tokens, text_channels)

    def split(self, name: Split) -> Dataset:
        """Raises UserError: there are no images."""
        raise UserError(
            "this run has no images to train on or to compare with (data: NoImages); give --data, "
            "such as --data ImageFolder --data.root DIR: to import_checkpoint.py, with another "
            "--out, or to train.py"
        )

    def class_counts(self) -> list[int]:
        """Returns one for each class: their proportions are not known."""
        return [1] * self.num_classes

    def describe(self) -> str:
        """Returns the sizes, in one line."""
        size = f"{self.in_channels}x{self.image_size}x{self.image_size}"
        return f"no images; of {size}, {self.num_classes:,} classes"

    def check(self, world: int = 1, accumulate: int = 1) -> None:
        """Does nothing: whoever needs images is told that there are none."""
