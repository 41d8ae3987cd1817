"""ADM (Dhariwal & Nichol, *Diffusion Models Beat GANs*, 2021): a U-Net with routed blocks.

Keyword arguments and parameter names are those of openai/guided-diffusion's `UNetModel`, so its
checkpoints load as they are. Routing follows Appendix A.1 of the DTR paper: each residual and each
attention block reads after its group norm. A block names the channels of each of its reads in
`reads` and takes one route for each.
"""

__all__ = [
    "ADM",
    "AttentionBlock",
    "Downsample",
    "GroupNorm",
    "ResBlock",
    "Stage",
    "Upsample",
    "zeroed",
]

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dtr_lightning.errors import UserError, choices
from dtr_lightning.models.base import Denoiser
from dtr_lightning.routing import Route, Router

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
        shape = (channels, channels, 3, 2, 1)  # channels in and out, kernel, stride, padding
        self.op = nn.Conv2d(*shape) if use_conv else nn.AvgPool2d(2)

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

    def forward(  # type: ignore[override]  # a Sequential for the names of the official parameters
        self, x: Tensor, emb: Tensor, routes: Iterator[Route]
    ) -> Tensor:
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


class TimeEmbed(nn.Sequential):
    """Embeds t by cosines, then sines, of C / 2 frequencies up to period 10000, and an MLP."""

    def __init__(self, channels: int, emb_channels: int) -> None:
        super().__init__(
            nn.Linear(channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        half = channels // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Returns the embedding (N, C_emb) of timesteps t (N,), integer or fractional."""
        angles = t.float()[:, None] * self.frequencies
        return super().forward(torch.cat([angles.cos(), angles.sin()], dim=-1))


class ADM(Denoiser):
    """U-Net of residual and attention blocks; the defaults are guided-diffusion's.

    num_classes None or 1 is unconditional. UserError where sizes do not fit: widths by the 32
    groups of the norm and by the heads, image_size by the halvings, attention rates that no level
    has.

    Args:
        model_channels: channels of the first level.
        num_res_blocks: residual blocks of each level.
        attention_resolutions: downsampling rates with attention, such as [2, 4, 8]; the middle
            always has it.
        dropout: share of features that a residual block drops in training, in [0, 1).
        channel_mult: width of each level in model_channels, all multiples of 32 channels; every
            level but the first halves the image.
        conv_resample: whether a convolution follows a change of resolution.
        use_checkpoint: computes activations again in the backward pass, to save memory.
        num_heads: attention heads, where num_head_channels is -1.
        num_head_channels: channels of each attention head; -1: num_heads counts.
        use_scale_shift_norm: the embedding scales and shifts the second norm, or is added.
        resblock_updown: residual blocks change the resolution, or plain layers.
        use_new_attention_order: q, k, v are split before the heads, or after.
        concat_mask: joint routes the decoder's cat([h, skip]) as one window, per_part as two.
        mask_second_norm: whether routing also applies after a residual block's second norm.
        class_dropout_prob: share of labels that training drops, in [0, 1); guidance needs > 0.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        concat_mask: Literal["joint", "per_part"] = "joint",
        mask_second_norm: bool = False,
        class_dropout_prob: float = 0.0,
        router: Router | None = None,
        tasks: int = 1000,
    ) -> None:
        super().__init__()
        for name, value in {"dropout": dropout, "class_dropout_prob": class_dropout_prob}.items():
            if not 0 <= value < 1:
                raise UserError(f"{name} must lie in [0, 1); got {value}")
        if concat_mask not in ("joint", "per_part"):
            raise choices("concat_mask", concat_mask, ("joint", "per_part"))
        if num_res_blocks < 1:
            raise UserError(f"num_res_blocks must be positive; got {num_res_blocks}")
        widths = _widths(model_channels, channel_mult)
        _check_rates(image_size, list(widths), attention_resolutions)
        heads = {
            width: _heads(width, num_heads, num_head_channels)
            for rate, width in widths.items()
            if rate in attention_resolutions or rate == max(widths)
        }
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_classes = num_classes or 1
        conditional = self.num_classes > 1
        self.class_dropout_prob = class_dropout_prob if conditional else 0.0

        emb_channels = 4 * model_channels
        self.time_embed = TimeEmbed(model_channels, emb_channels)
        if conditional:
            rows = self.num_classes + (self.class_dropout_prob > 0)
            self.label_emb = nn.Embedding(rows, emb_channels)

        def residual(
            reads: Sequence[int], width: int, size: type[Upsample | Downsample] | None = None
        ) -> ResBlock:
            options = (dropout, use_scale_shift_norm, mask_second_norm, size)
            return ResBlock(reads, emb_channels, width, *options)

        def attention(width: int) -> AttentionBlock:
            return AttentionBlock(width, heads[width], use_new_attention_order)

        def resample(kind: type[Upsample | Downsample], width: int) -> nn.Module:
            return residual([width], width, kind) if resblock_updown else kind(width, conv_resample)

        def stage(*layers: nn.Module) -> Stage:
            return Stage(*layers, use_checkpoint=use_checkpoint)

        h = widths[1]
        skips = [h]
        self.input_blocks = nn.ModuleList([stage(nn.Conv2d(in_channels, h, 3, padding=1))])
        for rate, width in widths.items():
            for _ in range(num_res_blocks):
                attends = [attention(width)] if rate in attention_resolutions else []
                self.input_blocks.append(stage(residual([h], width), *attends))
                h = width
                skips.append(h)
            if rate != max(widths):
                self.input_blocks.append(stage(resample(Downsample, h)))
                skips.append(h)
        self.middle_block = stage(residual([h], h), attention(h), residual([h], h))
        self.output_blocks = nn.ModuleList()
        for rate, width in reversed(widths.items()):
            for i in range(num_res_blocks + 1):
                parts = [h, skips.pop()]
                reads = parts if concat_mask == "per_part" else [sum(parts)]
                attends = [attention(width)] if rate in attention_resolutions else []
                grows = [resample(Upsample, width)] if rate > 1 and i == num_res_blocks else []
                self.output_blocks.append(stage(residual(reads, width), *attends, *grows))
                h = width
        self.out = nn.Sequential(
            GroupNorm(h), nn.SiLU(), zeroed(nn.Conv2d(h, out_channels, 3, padding=1))
        )
        self.router = self.router_or_none(router)
        stages = chain(self.input_blocks, [self.middle_block], self.output_blocks)
        reads = [channels for part in stages for channels in part.reads]
        self.router.bind(tasks, reads, emb_channels, channel_dim=1)

    def embed(self, t: Tensor) -> Tensor:
        """Returns the embedding (N, 4 model_channels) of timesteps t (N,)."""
        return self.time_embed(t)

    def checkpointed(self) -> list[nn.Module]:
        """Returns the residual and attention blocks."""
        return [part for part in self.modules() if isinstance(part, ResBlock | AttentionBlock)]

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Returns the prediction (N, C_out, H, W) for x (N, C_in, H, W), original t, y (N,)."""
        emb = self.embed(t)  # (N, C_emb)
        routes: Iterator[Route] = iter(self.router(t, emb))
        if self.num_classes > 1:
            emb = emb + self.label_emb(y)
        skips = []
        for block in self.input_blocks:
            x = block(x, emb, routes)
            skips.append(x)
        x = self.middle_block(x, emb, routes)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb, routes)
        return self.out(x)


def _widths(model_channels: int, channel_mult: Sequence[float]) -> dict[int, int]:
    """Returns the channels of every level by its downsampling rate 1, 2, 4, ..."""
    widths = [int(multiplier * model_channels) for multiplier in channel_mult]
    if not widths or model_channels % 2 or any(w < GROUPS or w % GROUPS for w in widths):
        raise UserError(
            f"model_channels times each of channel_mult must be a multiple of {GROUPS}, the groups "
            f"of the norm; got {model_channels} times {list(channel_mult)}"
        )
    return {2**level: width for level, width in enumerate(widths)}


def _check_rates(image_size: int, rates: list[int], attention_resolutions: Sequence[int]) -> None:
    if unknown := sorted(set(attention_resolutions) - set(rates)):
        raise choices("downsampling rates in attention_resolutions", unknown, rates)
    if image_size < 1 or image_size % rates[-1]:
        raise UserError(
            f"image_size must be a multiple of {rates[-1]}, as channel_mult has {len(rates)} "
            f"levels of half the size each; got {image_size}"
        )


def _heads(width: int, num_heads: int, num_head_channels: int) -> int:
    """Returns the number of heads of an attention block."""
    if num_head_channels == -1:
        if num_heads < 1 or width % num_heads:
            raise UserError(
                f"num_heads must divide the {width} channels of an attention block; got {num_heads}"
            )
        return num_heads
    if num_head_channels < 1 or width % num_head_channels:
        raise UserError(
            f"num_head_channels must divide the {width} channels of an attention block, or be -1 "
            f"to use num_heads; got {num_head_channels}"
        )
    return width // num_head_channels
