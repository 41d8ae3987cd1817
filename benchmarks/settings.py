"""The networks and data that are measured: the same for every side of a comparison."""

__all__ = ["DIT", "SETTINGS", "SameBatch", "Setting"]

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from lightning import LightningDataModule

from dtr_lightning.data import Pixels
from dtr_lightning.data.base import Batch


@dataclass(frozen=True)
class Setting:
    """A network, its batch of random images or latents, CPU threads and steps in a round."""

    channels: int
    size: int
    classes: int
    batch_size: int
    threads: int
    steps: int  # a round by default
    network: dict[str, int]  # DiT's own options, the same for both sides

    def model_options(self) -> dict[str, int]:
        """Returns the keyword arguments of a DiT."""
        return {
            "in_channels": self.channels,
            "input_size": self.size,
            "num_classes": self.classes,
            **self.network,
        }

    def batch(self, device: torch.device) -> Batch:
        """Returns images uint8 (N, C, H, W) and labels (N,)."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, self.channels, self.size, self.size)
        images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        labels = torch.randint(self.classes, shape[:1], generator=generator)
        return images.to(device), labels.to(device)


SETTINGS = {
    "tiny": Setting(
        4, 8, 10, 32, 2, 30, {"patch_size": 2, "hidden_size": 96, "depth": 3, "num_heads": 4}
    ),
    "digits": Setting(
        1, 8, 10, 64, 1, 30, {"patch_size": 2, "hidden_size": 64, "depth": 3, "num_heads": 8}
    ),
    "dit_s4": Setting(
        4, 32, 1000, 8, 2, 3, {"patch_size": 4, "hidden_size": 384, "depth": 12, "num_heads": 6}
    ),
}

# The paper's networks on 4x32x32 latents at batch 32: patch size, channels, blocks, heads.
DIT = {
    name: Setting(
        4,
        32,
        1000,
        32,
        2,
        1,
        dict(zip(("patch_size", "hidden_size", "depth", "num_heads"), sizes, strict=True)),
    )
    for name, sizes in {
        "S/4": (4, 384, 12, 6),
        "S/2": (2, 384, 12, 6),
        "B/2": (2, 768, 12, 12),
        "L/2": (2, 1024, 24, 16),
    }.items()
}


class SameBatch(LightningDataModule):
    """The batch of a setting over and over; no `Data`, so it is no choice of `--data`."""

    seed = 0
    captions = None
    codec = Pixels()

    def __init__(self, setting: str) -> None:
        super().__init__()
        self.batch = SETTINGS[setting].batch(torch.device("cpu"))
        self.batch_size, self.in_channels, self.image_size, _ = self.batch[0].shape
        self.shape = self.image_shape = tuple(self.batch[0].shape[1:])
        self.num_classes = SETTINGS[setting].classes
        self.class_names = [str(label) for label in range(self.num_classes)]

    def split(self, name: str) -> list[Batch]:
        """Returns no images: nothing is scored."""
        return []

    def check(self, world: int = 1, accumulate: int = 1) -> None:
        """Accepts one device, which is what is measured."""
        assert world == accumulate == 1

    def train_dataloader(self) -> Iterable[Batch]:
        """Returns images uint8 (N, C, H, W) and labels (N,), without end."""
        return itertools.repeat(self.batch)
