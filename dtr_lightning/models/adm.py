"""ADM (Dhariwal & Nichol, *Diffusion Models Beat GANs*, 2021): a U-Net with routed blocks.

Keyword arguments and parameter names are those of openai/guided-diffusion's `UNetModel`, so its
checkpoints load as they are. Routing follows Appendix A.1 of the DTR paper: each residual and each
attention block reads after its group norm.
"""

__all__ = ["ADM"]

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from dtr_lightning.errors import UserError, choices
from dtr_lightning.models.adm_blocks import (
    GROUPS,
    AttentionBlock,
    Downsample,
    GroupNorm,
    ResBlock,
    Stage,
    Upsample,
    zeroed,
)
from dtr_lightning.models.base import Denoiser
from dtr_lightning.routers import Route, Router


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
