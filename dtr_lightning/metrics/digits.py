"""The features of `fd_digits_v1`: a small classifier of 8x8 digits that ships with the package.

Weights, recipe and held-out accuracy lie beside this file; `train_digits` makes them again.
"""

__all__ = ["DigitsFeatures", "DigitsNet"]

from hashlib import sha256
from importlib import resources

from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from dtr_lightning.data.codec import to_float
from dtr_lightning.errors import UserError
from dtr_lightning.metrics.features import Features


class DigitsNet(nn.Module):
    """Three convolutions and two linear layers on 1x8x8 images; 48 features before the last.

    The features are standardised (BatchNorm without scale), so that a Frechet distance is in units
    of one feature's variance over the training images.
    """

    num_features = 48

    def __init__(self) -> None:
        super().__init__()
        width = 48
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.AvgPool2d(2),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * width, self.num_features, bias=False),
            nn.BatchNorm1d(self.num_features, affine=False),
        )
        self.head = nn.Linear(self.num_features, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features (N, 48) of images in [-1, 1] (N, 1, 8, 8)."""
        return self.body(x)

    def logits(self, features: Tensor) -> Tensor:
        """Returns class logits (N, 10)."""
        return self.head(F.gelu(features))


class DigitsFeatures(Features):
    """The shipped digit classifier: 48 features, ten classes, score `fd_digits_v1`."""

    name = "fd_digits_v1"
    num_features = DigitsNet.num_features

    def __init__(self) -> None:
        super().__init__()
        self.net = DigitsNet()
        weights = resources.files("dtr_lightning.metrics") / f"{self.name}.safetensors"
        self.net.load_state_dict(load(content := weights.read_bytes()))
        self.which_weights = f"shipped, sha256 {sha256(content).hexdigest()[:8]}"
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Returns the features float32 (N, 48) of uint8 images (N, 1, 8, 8)."""
        if images.shape[1:] != (1, 8, 8):
            raise UserError(f"digit features need 1x8x8 images, not {tuple(images.shape[1:])}")
        return self.net(to_float(images))

    def logits(self, features: Tensor) -> Tensor:
        """Returns the logits (N, 10) of the digits."""
        return self.net.logits(features)
