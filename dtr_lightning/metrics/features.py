"""What images are compared by: frozen networks that map an image to a feature vector.

The name of a score follows its features: "fid" is Inception's alone; a distance in other features
is another number and says so.
"""

__all__ = ["Features", "digest", "rgb", "unreadable"]

from abc import ABC, abstractmethod
from hashlib import file_digest
from pathlib import Path

from torch import Tensor, nn

from dtr_lightning.errors import UserError


class Features(nn.Module, ABC):
    """A frozen feature extractor; a subclass is a choice of `--features` by its name.

    A constructor sets `name` (the score's name) and `num_features` and ends with `freeze()`. A row
    of metrics also states `which_weights` (a hash of their file, say) and `resize`. Features whose
    weights are `random` make no measure of quality: whoever prints their score says so.
    """

    name: str
    num_features: int
    which_weights: str = "its own"
    random: bool = False
    resize: str = "none"

    @property
    def extractor(self) -> str:
        """What computes the features, in words."""
        return type(self).__name__

    def describe(self) -> dict[str, str | int]:
        """Returns what must be equal where scores are compared."""
        return {
            "extractor": self.extractor,
            "extractor_weights": self.which_weights,
            "extractor_random": self.random,
            "extractor_resize": self.resize,
            "num_features": self.num_features,
        }

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Returns the features float32 (N, num_features) of uint8 images (N, C, H, W)."""

    def logits(self, features: Tensor) -> Tensor | None:
        """Returns class logits (N, classes) from features, None where there is no classifier."""
        return None

    def freeze(self) -> None:
        """Ends training for good: no gradients, evaluation mode."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Features":
        """Stays in evaluation mode, whatever module this one is a part of."""
        return super().train(False)


def rgb(images: Tensor) -> Tensor:
    """Returns images (N, 1 or 3, H, W) with three channels."""
    if images.shape[1] not in (1, 3):
        raise UserError(f"features need images of 1 or 3 channels, not {images.shape[1]}")
    return images.expand(-1, 3, -1, -1)


def digest(path: str | Path) -> str:
    """Returns the first eight hexadecimal digits of a file's SHA-256."""
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()[:8]


def unreadable(path: str | Path, error: Exception) -> UserError:
    """Returns the error for weights that cannot be read, or are not there."""
    if not Path(path).is_file():
        return UserError(f"weights {path} do not exist")
    return UserError(
        f"cannot read weights {path} ({type(error).__name__}): damaged, or with code in it; "
        "give a .safetensors or a plain state_dict"
    )
