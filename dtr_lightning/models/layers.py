"""Layers shared by the backbones; parameter names are those of facebookresearch/DiT."""

__all__ = ["Attention", "LabelEmbedder", "Mlp", "PatchEmbed", "TimestepEmbedder", "sincos_2d"]

import math

import torch
from timm import layers as timm_layers
from torch import Tensor, nn
from torch.nn import functional as F


class PatchEmbed(timm_layers.PatchEmbed):
    """timm's patch embedding as one matrix product: 3-5 % of a small model's step on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns tokens (N, L, C) of images (N, C_in, H, W)."""
        p, q = self.patch_size
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // p, p, w // q, q).permute(0, 2, 4, 1, 3, 5)
        x = x.reshape(n, (h // p) * (w // q), c * p * q)  # (N, L, C_in p q)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class Attention(timm_layers.Attention):
    """timm's self-attention; few tokens on a CPU take two batched products instead (2-6 %)."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the attention output (N, L, C) of tokens (N, L, C)."""
        n, length, c = x.shape
        qkv = self.qkv(x).view(n, length, 3, self.num_heads, self.head_dim)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, N, heads, L, C / heads)
        if length > 32 or not x.is_cpu:
            x = F.scaled_dot_product_attention(*qkv.unbind(0))
        else:
            q, k, v = qkv.flatten(1, 2).unbind(0)
            attn = torch.bmm(q * self.scale, k.transpose(1, 2)).softmax(-1)
            x = torch.bmm(attn, v).view(n, self.num_heads, length, self.head_dim)
        return self.proj(x.transpose(1, 2).reshape(n, length, c))


class Mlp(timm_layers.Mlp):
    """timm's two-layer perceptron with GELU in its tanh form."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns tokens (N, L, C) of tokens (N, L, C)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class TimestepEmbedder(nn.Module):
    """Embeds t by cosines, then sines, of 128 frequencies up to period 10000, and an MLP."""

    def __init__(self, channels: int, frequency_channels: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(frequency_channels, channels), nn.SiLU(), nn.Linear(channels, channels)
        )
        half = frequency_channels // 2
        frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float32))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Returns the embedding (N, C) of timesteps t (N,), integer or fractional."""
        angles = t.float()[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class LabelEmbedder(nn.Module):
    """Embeds class labels; a null class, for label dropout, is one more row at `num_classes`."""

    def __init__(self, num_classes: int, channels: int, null_class: bool) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + null_class, channels)

    def forward(self, y: Tensor) -> Tensor:
        """Returns the embedding (N, C) of labels y (N,)."""
        return self.embedding_table(y)


def sincos_2d(channels: int, grid: int) -> Tensor:
    """Returns fixed sine-cosine positions float32 (1, grid^2, C): one half for x, one for y."""
    omega = 10_000 ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))
    position = torch.arange(grid, dtype=torch.float64)[:, None] * omega  # (grid, C / 4)
    axis = torch.cat([position.sin(), position.cos()], dim=1)  # (grid, C / 2)
    x = axis[None, :, :].expand(grid, -1, -1)
    y = axis[:, None, :].expand(-1, grid, -1)
    return torch.cat([x, y], dim=-1).reshape(1, grid * grid, channels).float()
