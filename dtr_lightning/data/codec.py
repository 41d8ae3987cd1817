"""Codecs: what stands between what is stored and what the network sees.

Training, sampling, scores, pictures and probes go through a codec alike, so that nothing else knows
whether a run lives in pixels or in the latents of an autoencoder (LDM, Rombach et al. 2022).
"""

__all__ = ["VAE", "Codec", "DecodePrecision", "Pixels", "Posterior", "to_float", "to_uint8"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dtr_lightning.data.pretrained import check_digest, reading, weights_digest
from dtr_lightning.errors import UserError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

DecodePrecision = Literal["float32", "bf16"]
Posterior = Literal["sample", "mean"]
Shape = tuple[int, int, int]

LOG_VARIANCE = (-30.0, 20.0)  # that a posterior is limited to, as in LDM
CHUNK = 64  # images that an autoencoder takes at a time


def to_float(images: Tensor) -> Tensor:
    """Returns uint8 images as float32 in [-1, 1]: x / 127.5 - 1."""
    return images.to(torch.float32, copy=True).div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Returns images in [-1, 1] as uint8, rounded to the nearest level and clamped."""
    return images.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


class Codec(ABC):
    """Turns images into what is stored, that into what the network sees, and that into images.

    `bounded` says whether what the network sees lies in [-1, 1], so that samplers may clip to it.
    """

    bounded: bool

    @abstractmethod
    def image_shape(self, shape: Shape) -> Shape:
        """Returns (C, H, W) of the images that decode from what a network sees as (C, H, W)."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Returns what is stored of images uint8 (N, C, H, W)."""

    @abstractmethod
    def sample(self, stored: Tensor, randn: Callable[[torch.Size], Tensor]) -> Tensor:
        """Returns x_0 float32 (N, C, H, W) of a training step; `randn` draws what is random."""

    @abstractmethod
    def mean(self, stored: Tensor) -> Tensor:
        """Returns x_0 float32 (N, C, H, W) that held-out losses and probes measure."""

    @abstractmethod
    def restore(self, stored: Tensor) -> Tensor:
        """Returns images uint8 (N, C, H, W) of what is stored of them, on its device."""

    @abstractmethod
    def decode(self, x: Tensor, precision: DecodePrecision = "float32") -> Tensor:
        """Returns images uint8 (N, C, H, W) of what the network sees, on the device of x."""

    def describe(self) -> dict[str, Any]:
        """Returns what a protocol states of the codec: its name, and nothing for pixels."""
        return {"codec": type(self).__name__}

    def arguments(self) -> dict[str, Any]:
        """Returns what its constructor is to be given where no data lie: plain values."""
        return {}

    def check(self) -> None:
        """Raises UserError where what it needs cannot be had."""
        return None


class Pixels(Codec):
    """Stores uint8 images as they are; the network sees them in [-1, 1]."""

    bounded = True

    def describe(self) -> dict[str, Any]:
        """Returns nothing: pixels are what a protocol takes for granted."""
        return {}

    def image_shape(self, shape: Shape) -> Shape:
        """Returns the shape itself."""
        return shape

    def encode(self, images: Tensor) -> Tensor:
        """Returns the images."""
        return images

    def sample(self, stored: Tensor, randn: Callable[[torch.Size], Tensor]) -> Tensor:
        """Returns x / 127.5 - 1; draws nothing."""
        return to_float(stored)

    def mean(self, stored: Tensor) -> Tensor:
        """Returns x / 127.5 - 1."""
        return to_float(stored)

    def restore(self, stored: Tensor) -> Tensor:
        """Returns the images."""
        return stored

    def decode(self, x: Tensor, precision: DecodePrecision = "float32") -> Tensor:
        """Returns 127.5 (x + 1), rounded and clamped."""
        return to_uint8(x)


class VAE(Codec):
    """Diffusers' AutoencoderKL: stores the posterior's moments, the network sees scaled latents.

    Stored are mean and log variance, (N, 2C, h, w); the network sees (z - shift) scale, z being
    drawn from the posterior at every step, or its mean. The autoencoder encodes in float32.

    Args:
        path: folder in diffusers' layout, or a name on the Hugging Face hub.
        posterior: sample draws z at every training step, mean takes the mean.
        digest: of the weights that are wanted; any by default.
        scale: of the latents; the autoencoder's own by default.
        shift: of the latents; the autoencoder's own by default.
        input_range: what the autoencoder is given for black and white; EDM2's code gives 0 and 1.
    """

    bounded = False

    def __init__(
        self,
        path: str,
        posterior: Posterior = "sample",
        digest: str | None = None,
        scale: float | None = None,
        shift: float | None = None,
        input_range: Sequence[float] = (-1, 1),
    ) -> None:
        self.path, self.posterior, self.wanted = path, posterior, digest
        self.given = scale, shift
        self.low, self.high = input_range

    @cached_property
    def network(self) -> "AutoencoderKL":
        """The autoencoder, frozen; UserError where it cannot be had or is another."""
        hint = "; --data.vae says where it is" if self.wanted else ""
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise UserError(
                "latents need diffusers: pip install -r requirements-scale.txt"
            ) from error
        with reading(self.path, "autoencoder", hint) as local:
            network = AutoencoderKL.from_pretrained(
                self.path,
                local_files_only=local,
                use_safetensors=True,
                low_cpu_mem_usage=False,  # that needs accelerate
            )
        if self.wanted:
            digest = weights_digest(network)
            check_digest(digest, self.wanted, self.path, "autoencoder", "latents", hint)
        return network.requires_grad_(False).eval()

    @property
    def scale(self) -> float:
        """The factor of the latents that the network sees."""
        scale = self.given[0]
        return float(self.network.config.scaling_factor) if scale is None else scale

    @property
    def shift(self) -> float:
        """What is subtracted from the latents first."""
        shift = self.given[1]
        if shift is None:
            shift = getattr(self.network.config, "shift_factor", None)
        return float(shift or 0.0)

    @property
    def factor(self) -> int:
        """Pixels a side of one latent."""
        return 2 ** (len(self.network.config.block_out_channels) - 1)

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits of the weights, wherever they lie."""
        return self.wanted or weights_digest(self.network)

    def latent_shape(self, shape: Shape) -> Shape:
        """Returns (C, h, w) of the latents of images (C, H, W); UserError where they do not fit."""
        channels, height, width = shape
        wanted = int(self.network.config.in_channels)
        if channels != wanted:
            raise UserError(
                f"the autoencoder takes images of {wanted} channels, these have {channels}"
            )
        if height % self.factor or width % self.factor:
            raise UserError(
                f"images of {height} x {width} pixels do not divide by the autoencoder's factor "
                f"{self.factor}; give a multiple of it"
            )
        latent = int(self.network.config.latent_channels)
        return latent, height // self.factor, width // self.factor

    def image_shape(self, shape: Shape) -> Shape:
        """Returns (C, H, W) of decoded images; UserError for other channels than the latents'."""
        latent = int(self.network.config.latent_channels)
        if shape[0] != latent:
            raise UserError(
                f"the autoencoder has latents of {latent} channels, the stored ones {shape[0]}"
            )
        return (
            int(self.network.config.out_channels),
            shape[1] * self.factor,
            shape[2] * self.factor,
        )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Returns the moments float32 (N, 2C, h, w) of images uint8: mean, then log variance."""
        network = self.network.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            parts = [network.encode(self._input(x)).latent_dist for x in images.split(CHUNK)]
        return torch.cat([part.parameters for part in parts])

    def sample(self, stored: Tensor, randn: Callable[[torch.Size], Tensor]) -> Tensor:
        """Returns ((mean + std noise) - shift) scale; without noise where the mean is wanted."""
        if self.posterior == "mean":
            return self.mean(stored)
        mean, log_variance = stored.float().chunk(2, 1)
        std = log_variance.clamp(*LOG_VARIANCE).div(2).exp()
        return (mean + std * randn(mean.shape) - self.shift) * self.scale

    def mean(self, stored: Tensor) -> Tensor:
        """Returns (mean - shift) scale."""
        return (stored.float().chunk(2, 1)[0] - self.shift) * self.scale

    def restore(self, stored: Tensor) -> Tensor:
        """Returns the images of the posteriors' means."""
        return self.decode(self.mean(stored))

    @torch.no_grad()
    def decode(self, x: Tensor, precision: DecodePrecision = "float32") -> Tensor:
        """Returns the images of x / scale + shift; bf16 means mixed precision."""
        network, z = self.network.to(x.device), x.float() / self.scale + self.shift
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            parts = [network.decode(part).sample.float() for part in z.split(CHUNK)]
        middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        return torch.cat([to_uint8(part.sub_(middle).div_(half)) for part in parts])

    def describe(self) -> dict[str, Any]:
        """Returns the codec and the digest of its weights."""
        return {"codec": "VAE", "vae": self.digest}

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, with the digest."""
        return {
            "path": self.path,
            "posterior": self.posterior,
            "digest": self.digest,
            "scale": self.scale,
            "shift": self.shift,
            "input_range": [self.low, self.high],
        }

    def check(self) -> None:
        """Raises UserError where the autoencoder cannot be had or is another."""
        self.network  # noqa: B018

    def _input(self, images: Tensor) -> Tensor:
        """Returns what the autoencoder is given for images uint8."""
        middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        return to_float(images).mul_(half).add_(middle)
