"""Sizes without images: the data of a network that was trained elsewhere."""

__all__ = ["NoImages"]

from torch.utils.data import Dataset

from dtr_lightning.data.base import Data, Split
from dtr_lightning.errors import UserError


class NoImages(Data):
    """The sizes of images that are not here: a network can be sampled from, not trained or scored.

    Args:
        in_channels: of an image, or of a latent.
        image_size: pixels a side.
        num_classes: 1 is unconditional.
        batch_size: images per step of the training, wherever it was.
    """

    def __init__(
        self, in_channels: int, image_size: int, num_classes: int = 1, batch_size: int = 256
    ) -> None:
        super().__init__(batch_size, flip=False)
        sizes = {"in_channels": in_channels, "image_size": image_size, "num_classes": num_classes}
        for name, size in sizes.items():
            if size < 1:
                raise UserError(f"data.{name} must be at least 1; got {size}")
        self.in_channels, self.image_size = in_channels, image_size
        self.num_classes = num_classes
        self.class_names = tuple(map(str, range(num_classes)))

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

    def check(self, world: int = 1) -> None:
        """Does nothing: whoever needs images is told that there are none."""
