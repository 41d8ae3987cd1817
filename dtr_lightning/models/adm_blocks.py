"""Blocks of the ADM U-Net (Dhariwal & Nichol 2021), which read their normed features by routes.

Parameter names are those of openai/guided-diffusion. A block names the channels of each of its
reads in `reads` and takes one route for each (Appendix A.1).
"""

__all__ = ["AttentionBlock", "Downsample", "GroupNorm", "ResBlock", "Stage", "Upsample", "zeroed"]

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dtr_lightning.routers import Route

GROUPS = 32


def zeroed(layer: nn.Module) -> nn.Module:
    """Returns the layer with all its parameters set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class GroupNorm(nn.GroupNorm):
    """Group norm of 32 groups in float32, whatever the dtype of the features."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normed features (N, C, ...) in the dtype of x (N, C, ...)."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels; a 3x3 convolution follows where asked."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, C, 2 H, 2 W) of x (N, C, H, W)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Downsample(nn.Module):
    """Halves height and width by a 3x3 convolution of stride 2, or else by the mean of 2x2."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        strided = {"kernel_size": 3, "stride": 2, "padding": 1}
        self.op = nn.Conv2d(channels, channels, **strided) if use_conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, C, H / 2, W / 2) of x (N, C, H, W)."""
        return self.op(x)


class ResBlock(nn.Module):
    """Residual block of two convolutions under the condition; `resample` may change its size.

    `reads` are the widths of its input's parts, each read by its own route after the first group
    norm; with `mask_second_norm` one more read, of C_out channels, follows the second norm. A mask
    of 0 and 1 may as well come after the SiLU or the resampling: both work on each channel alone.
    """

    def __init__(
        self,
        reads: Sequence[int],
        emb_channels: int,
        out_channels: int,
        dropout: float,
        use_scale_shift_norm: bool = False,
        mask_second_norm: bool = False,
        resample: type[Upsample] | type[Downsample] | None = None,
    ) -> None:
        super().__init__()
        channels = sum(reads)
        self.parts = list(reads)
        self.reads = self.parts + [out_channels] * mask_second_norm
        self.use_scale_shift_norm = use_scale_shift_norm
        self.in_layers = nn.Sequential(
            GroupNorm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.resample = resample(channels, use_conv=False) if resample else nn.Identity()
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, out_channels * (1 + use_scale_shift_norm))
        )
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor, routes: Sequence[Route]) -> Tensor:
        """Returns features (N, C_out, H', W') of x (N, C, H, W) and condition emb (N, C_emb)."""
        norm, activation, conv = self.in_layers
        h = self._read(norm(x), routes[: len(self.parts)])
        h = conv(self.resample(activation(h)))
        modulation = self.emb_layers(emb).to(h.dtype)[:, :, None, None]
        norm, *rest = self.out_layers
        if self.use_scale_shift_norm:
            scale, shift = modulation.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + modulation)
        for route in routes[len(self.parts) :]:
            h = route(h)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(self.resample(x)) + h

    def _read(self, z: Tensor, routes: Sequence[Route]) -> Tensor:
        if len(routes) == 1:
            return routes[0](z)
        parts = z.split(self.parts, dim=1)
        return torch.cat([r(part) for r, part in zip(routes, parts, strict=True)], dim=1)


class AttentionBlock(nn.Module):
    """Residual self-attention over the pixels, which reads after its group norm.

    The channels of `qkv` are q, k, v and each of them its heads in guided-diffusion's new order;
    in its legacy order they are the heads, and each head its q, k, v.
    """

    def __init__(self, channels: int, num_heads: int, new_order: bool) -> None:
        super().__init__()
        self.reads = [channels]
        self.num_heads, self.new_order = num_heads, new_order
        self.norm = GroupNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, emb: Tensor, routes: Sequence[Route]) -> Tensor:
        """Returns features (N, C, H, W) of x (N, C, H, W); the condition is not used."""
        (route,) = routes
        n, c, height, width = x.shape
        qkv = self.qkv(route(self.norm(x.flatten(2))))  # (N, 3 C, L)
        axes = (3, self.num_heads) if self.new_order else (self.num_heads, 3)
        qkv = qkv.view(n, *axes, c // self.num_heads, height * width)
        qkv = qkv.transpose(-1, -2).contiguous()  # fused attention wants contiguous channels
        h = F.scaled_dot_product_attention(*qkv.unbind(1 if self.new_order else 2))
        h = h.transpose(-1, -2).reshape(n, c, height * width)
        return x + self.proj_out(h).view_as(x)


class Stage(nn.Sequential):
    """Layers in turn, of which the blocks get the condition and the routes of their reads."""

    def __init__(self, *layers: nn.Module, use_checkpoint: bool = False) -> None:
        super().__init__(*layers)
        self.use_checkpoint = use_checkpoint

    @property
    def reads(self) -> list[int]:
        """The channels of each read, in order."""
        blocks = (layer for layer in self if isinstance(layer, ResBlock | AttentionBlock))
        return [channels for block in blocks for channels in block.reads]

    def forward(self, x: Tensor, emb: Tensor, routes: Iterator[Route]) -> Tensor:
        """Returns the features of x (N, C, H, W); takes as many routes as it has reads."""
        for layer in self:
            if not isinstance(layer, ResBlock | AttentionBlock):
                x = layer(x)
                continue
            own = [next(routes) for _ in layer.reads]
            if self.use_checkpoint:
                x = checkpoint(layer, x, emb, own, use_reentrant=False)
            else:
                x = layer(x, emb, own)
        return x
