"""DiT (Peebles & Xie, *Scalable Diffusion Models with Transformers*, 2023) with routed blocks.

Keyword arguments and parameter names are those of facebookresearch/DiT, so its checkpoints load as
they are. Routing follows Eq. 8 of the DTR paper.
"""

__all__ = ["DiT", "DiT_B", "DiT_L", "DiT_S", "DiT_XL", "SiT"]

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dtr_lightning.errors import UserError
from dtr_lightning.models.base import Denoiser
from dtr_lightning.models.layers import (
    Attention,
    LabelEmbedder,
    Mlp,
    PatchEmbed,
    TimestepEmbedder,
    sincos_2d,
)
from dtr_lightning.routing import Route, Router


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Returns x (1 + scale) + shift for tokens x (N, L, C) and shift, scale (N, 1, C)."""
    return torch.addcmul(shift, x, 1 + scale)


class DiTBlock(nn.Module):
    """Transformer block with adaLN-Zero: attention, then an MLP, both gated by the condition."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads=num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x: Tensor, c: Tensor, route: Route) -> Tensor:
        """Returns x + F(route(x)) for tokens x (N, L, C) and condition c (N, C) (Eq. 8).

        F(z) = d1 + d2 with d1 = gate1 Attn(mod(LN z)) and d2 = gate2 MLP(mod(LN(z + d1))).
        """
        modulation = self.adaLN_modulation(c).unsqueeze(1)  # (N, 1, 6 C)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        z = route(x)
        d1 = gate1 * self.attn(modulate(self.norm1(z), shift1, scale1))
        d2 = self.mlp(modulate(self.norm2(z + d1), shift2, scale2))
        return torch.addcmul(x + d1, gate2, d2)


class FinalLayer(nn.Module):
    """Modulated norm and projection of each token to its patch."""

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Returns patches (N, L, p p C_out) of tokens x (N, L, C)."""
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(Denoiser):
    """Diffusion transformer of any size; the defaults are DiT-XL/2 on 32x32x4 latents.

    UserError where sizes do not fit.

    Args:
        patch_size: pixels a side of a token; divides the image size.
        hidden_size: channels C of a token; a multiple of num_heads and of 4.
        depth: number of blocks.
        num_heads: attention heads of a block.
        mlp_ratio: channels of a block's MLP, in hidden_size.
        class_dropout_prob: share of labels that training drops, in [0, 1); guidance needs > 0.
        use_checkpoint: computes a block's activations again in the backward pass, to save memory.
    """

    block: ClassVar[type[nn.Module]] = DiTBlock

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        router: Router | None = None,
        tasks: int = 1000,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"patch_size": patch_size, "depth": depth, "num_heads": num_heads}
        for name, size in (sizes | {"hidden_size": hidden_size, "mlp_ratio": mlp_ratio}).items():
            if not 0 < size < float("inf"):
                raise UserError(f"{name} must be positive and finite; got {size}")
        if hidden_size * mlp_ratio < 1:
            raise UserError(f"mlp_ratio must be at least 1 / hidden_size; got {mlp_ratio}")
        if input_size % patch_size:
            raise UserError(f"patch_size {patch_size} does not divide the image size {input_size}")
        if hidden_size % num_heads or hidden_size % 4:
            raise UserError(
                f"hidden_size {hidden_size} must be divisible by num_heads {num_heads} and by 4"
            )
        if not 0 <= class_dropout_prob < 1:
            raise UserError(f"class_dropout_prob must lie in [0, 1); got {class_dropout_prob}")
        self.in_channels = in_channels
        self.out_channels = in_channels * 2 if learn_sigma else in_channels
        self.patch_size, self.num_classes = patch_size, num_classes
        self.use_checkpoint = use_checkpoint
        self.class_dropout_prob = class_dropout_prob if num_classes > 1 else 0.0

        self.x_embedder = PatchEmbed(input_size, patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, self.class_dropout_prob > 0)
        positions = sincos_2d(hidden_size, input_size // patch_size)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.ModuleList(
            self.block(hidden_size, num_heads, mlp_ratio) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)
        self._initialise()
        self.router = self.router_or_none(router)
        self.router.bind(tasks, [hidden_size] * depth, hidden_size)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.pos_embed.shape[-1], -1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=0.02)
        zeroed = [block.adaLN_modulation[-1] for block in self.blocks]
        for layer in (*zeroed, self.final_layer.adaLN_modulation[-1], self.final_layer.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def embed(self, t: Tensor) -> Tensor:
        """Returns the embedding (N, C) of timesteps t (N,)."""
        return self.t_embedder(t)

    def checkpointed(self) -> Sequence[nn.Module]:
        """Returns all blocks."""
        return self.blocks

    def compile_blocks(self, **options: Any) -> None:
        """Compiles each block for itself; the graph of the first serves all."""
        for block in self.blocks:
            block.compile(**options)

    def condition(self, emb: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Returns the condition c (N, C) of adaLN, and whatever else blocks are told of y."""
        return (emb + self.y_embedder(y),)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Returns the prediction (N, C_out, H, W) for x (N, C_in, H, W), original t, y (N,)."""
        h, w = x.shape[-2:]
        x = self.x_embedder(x) + self.pos_embed  # (N, L, C)
        emb = self.embed(t)  # (N, C)
        c, *tokens = self.condition(emb, y)
        routes = self.router(t, emb)
        for block, route in zip(self.blocks, routes, strict=True):
            x = self._through(block, x, c, route, *tokens)
        return self._unpatchify(self.final_layer(x, c), h, w)

    def _through(self, block: nn.Module, *inputs: Any) -> Tensor:
        if self.use_checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _unpatchify(self, x: Tensor, h: int, w: int) -> Tensor:
        p = self.patch_size
        x = x.view(len(x), h // p, w // p, p, p, self.out_channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.out_channels, h, w)


class DiT_S(DiT):
    """DiT-S: 12 blocks, 384 channels, 6 heads."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(hidden_size=384, depth=12, num_heads=6, **kwargs)


class DiT_B(DiT):
    """DiT-B: 12 blocks, 768 channels, 12 heads."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(hidden_size=768, depth=12, num_heads=12, **kwargs)


class DiT_L(DiT):
    """DiT-L: 24 blocks, 1024 channels, 16 heads."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(hidden_size=1024, depth=24, num_heads=16, **kwargs)


class DiT_XL(DiT):
    """DiT-XL: 28 blocks, 1152 channels, 16 heads."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(hidden_size=1152, depth=28, num_heads=16, **kwargs)


class SiT(DiT):
    """SiT (Ma et al., 2024): a DiT that embeds SiT's time 1 - t / (T - 1), which is 1 at the data.

    For imported weights; use it with FlowMatching. Routers see t as everywhere.
    """

    def embed(self, t: Tensor) -> Tensor:
        """Returns the embedding (N, C) of timesteps t (N,)."""
        return self.t_embedder(1 - t.float() / (self.router.tasks - 1))
