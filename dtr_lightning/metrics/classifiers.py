"""The features of `fd_digits_v1` and `fd_mnist_v1`: small classifiers that ship with the package.

Weights, recipe and held-out accuracy lie beside this file; `train_classifier` makes them again.
"""

__all__ = ["ClassifierFeatures", "ClassifierNet", "DigitsFeatures", "MNISTFeatures"]

from abc import abstractmethod
from hashlib import sha256
from importlib import resources

from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from dtr_lightning.data import to_float
from dtr_lightning.errors import UserError
from dtr_lightning.metrics.features import Features


class ClassifierNet(nn.Module):
    """Convolutions, each with BatchNorm and GELU, and two linear layers; features before the last.

    The features are standardised (BatchNorm without scale), so that a Frechet distance is in units
    of one feature's variance over the training images.

    Args:
        widths: channels of the convolutions; 0 halves height and width. What is left is 2x2.
        num_features: how many.
    """

    def __init__(self, widths: tuple[int, ...], num_features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in widths:
            if width:
                conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(width), nn.GELU()]
                channels = width
            else:
                layers.append(nn.AvgPool2d(2))
        self.body = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Linear(4 * channels, num_features, bias=False),
            nn.BatchNorm1d(num_features, affine=False),
        )
        self.head = nn.Linear(num_features, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features (N, num_features) of images in [-1, 1] (N, 1, H, W)."""
        return self.body(x)

    def logits(self, features: Tensor) -> Tensor:
        """Returns class logits (N, 10)."""
        return self.head(F.gelu(features))


class ClassifierFeatures(Features):
    """A shipped classifier of ten digits in images of one channel, `image_size` pixels a side."""

    image_size: int

    def __init__(self) -> None:
        super().__init__()
        self.net = self.untrained()
        weights = resources.files("dtr_lightning.metrics") / f"{self.name}.safetensors"
        self.net.load_state_dict(load(content := weights.read_bytes()))
        self.which_weights = f"shipped, sha256 {sha256(content).hexdigest()[:8]}"
        self.freeze()

    @classmethod
    @abstractmethod
    def untrained(cls) -> ClassifierNet:
        """Returns the network as its training starts."""

    def forward(self, images: Tensor) -> Tensor:
        """Returns the features float32 (N, num_features) of uint8 images (N, 1, H, W)."""
        side = self.image_size
        if images.shape[1:] != (1, side, side):
            raise UserError(
                f"{type(self).__name__} needs 1x{side}x{side} images, these are "
                f"{'x'.join(map(str, images.shape[1:]))}: give --features {_fitting(images)}"
            )
        return self.net(to_float(images))

    def logits(self, features: Tensor) -> Tensor:
        """Returns the logits (N, 10) of the digits."""
        return self.net.logits(features)


def _fitting(images: Tensor) -> str:
    """Returns the features that take images of this shape (N, C, H, W), in words."""
    fitting = [
        f"{features.__name__} (of digits)"
        for features in ClassifierFeatures.__subclasses__()
        if images.shape[1:] == (1, features.image_size, features.image_size)
    ]
    fitting.append("TimmFeatures (untrained unless it gets weights)")
    return ", ".join([*fitting, "InceptionFeatures (FID) or DINOv2Features"])


class DigitsFeatures(ClassifierFeatures):
    """The classifier of `Digits`, 8x8 pixels: 48 features, ten classes, score `fd_digits_v1`."""

    name = "fd_digits_v1"
    num_features = 48
    image_size = 8

    @classmethod
    def untrained(cls) -> ClassifierNet:
        """Returns three convolutions of 48 channels."""
        return ClassifierNet((48, 48, 0, 48, 0), cls.num_features)


class MNISTFeatures(ClassifierFeatures):
    """The classifier of `MNIST`, 32x32 pixels: 64 features, ten classes, score `fd_mnist_v1`."""

    name = "fd_mnist_v1"
    num_features = 64
    image_size = 32

    @classmethod
    def untrained(cls) -> ClassifierNet:
        """Returns four convolutions of 16 to 64 channels."""
        return ClassifierNet((16, 0, 32, 0, 48, 0, 64, 0), cls.num_features)
