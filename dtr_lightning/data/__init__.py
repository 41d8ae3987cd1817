"""Data sets: what the images are and which of them make the batch of a step."""

from dtr_lightning.data.base import Data
from dtr_lightning.data.captioned import CaptionedLatents
from dtr_lightning.data.captions import Captions
from dtr_lightning.data.codec import VAE, Codec, Pixels, to_float, to_uint8
from dtr_lightning.data.digits import Digits
from dtr_lightning.data.digits_captions import DigitsCaptions
from dtr_lightning.data.image_folder import ImageFolder
from dtr_lightning.data.latents import Latents, PixelStore
from dtr_lightning.data.mnist import MNIST
from dtr_lightning.data.no_images import NoImages

__all__ = [
    "MNIST",
    "VAE",
    "CaptionedLatents",
    "Captions",
    "Codec",
    "Data",
    "Digits",
    "DigitsCaptions",
    "ImageFolder",
    "Latents",
    "NoImages",
    "PixelStore",
    "Pixels",
    "to_float",
    "to_uint8",
]
