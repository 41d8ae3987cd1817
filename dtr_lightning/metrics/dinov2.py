"""The features of FD-DINOv2 (Stein et al. 2023): the class token of DINOv2 at 224 pixels."""

__all__ = ["DINOv2Features"]

import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dtr_lightning.metrics.timm_features import TimmFeatures

PATCH = 14


class DINOv2Features(TimmFeatures):
    """DINOv2's class token after the last norm; of ViT-L/14 the score is FD-DINOv2.

    Images are resized to 224x224 by an antialiased bicubic filter, rounded to grey levels as PIL
    does, and normalised as ImageNet. The 37x37 positions are resampled to 16x16 as DINOv2's own
    code does: bicubic, offset 0.1, without the antialiasing of timm. Only timm's download is called
    `fd_dinov2`; a local file adds its name.

    Args:
        network: of DINOv2; FD-DINOv2 is defined with the large one.
        weights: a local copy of timm's or of DINOv2's own file of that network.
        pretrained: whether timm downloads its weights.
    """

    def __init__(
        self,
        network: Literal["small", "base", "large", "giant"] = "large",
        weights: str | Path | None = None,
        pretrained: bool = False,
    ) -> None:
        self.network = network
        super().__init__(f"vit_{network}_patch14_dinov2", weights, pretrained, size=224)
        self.name = self._names(weights, pretrained)[0]
        self.resize = "bicubic to 224x224, antialiased, rounded"

    @property
    def extractor(self) -> str:
        """What computes the features, in words."""
        return f"DINOv2 ViT {self.network}/14, class token"

    def _names(self, weights: str | Path | None, pretrained: bool) -> tuple[str, str]:
        name, which = super()._names(weights, pretrained)
        short = "fd_dinov2" if self.network == "large" else f"fd_dinov2_{self.network}"
        return name.replace(f"fd_{self.model}", short), which

    def _resized(self, x: Tensor) -> Tensor:
        height, width = self.input_size
        for size in ((x.shape[-2], width), (height, width)):  # PIL rounds after either side
            if x.shape[-2:] != size:
                x = F.interpolate(x, size, mode="bicubic", antialias=True).round_().clamp_(0, 255)
        return x

    def _set_size(self, size: int) -> None:
        positions = self.net.pos_embed.detach()
        super()._set_size(size)
        with torch.no_grad():
            self.net.pos_embed.copy_(resampled(positions, size // PATCH))


def resampled(positions: Tensor, side: int) -> Tensor:
    """Returns the positions (1, 1 + S S, C) of a class token and S x S patches, for side x side."""
    first, rest = positions[:, :1], positions[:, 1:]
    old = math.isqrt(rest.shape[1])
    grid = rest.unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(side + 0.1) / old, mode="bicubic")
    return torch.cat([first, grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)
