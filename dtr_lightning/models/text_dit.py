"""Text-to-image DiT of the DTR paper (Appendix C, Fig. 8): cross-attention to tokens of a text.

The paper leaves open where the cross-attention stands and how it is modulated: here it comes
between self-attention and MLP and has a shift, scale and gate of its own.
"""

__all__ = ["TextDiT"]

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtr_lightning.errors import UserError
from dtr_lightning.models.dit import DiT, modulate
from dtr_lightning.models.layers import Attention, Mlp
from dtr_lightning.routing import Route, Router


class CrossAttention(nn.Module):
    """Multi-head attention whose queries are image tokens and whose keys and values are text."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(hidden_size, hidden_size)
        self.kv = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """Returns the attention output (N, L, C) of tokens x (N, L, C) to text (N, L_text, C)."""
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        kv = self.kv(text).unflatten(-1, (2, self.num_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # (N, heads, L_text, C / heads)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class TextDiTBlock(nn.Module):
    """Transformer block with adaLN-Zero of three parts: self-attention, cross-attention, MLP."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads=num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.cross_attn = CrossAttention(hidden_size, num_heads)
        self.norm3 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 9 * hidden_size))

    def forward(self, x: Tensor, c: Tensor, route: Route, text: Tensor) -> Tensor:
        """Returns x + F(route(x)) for tokens x (N, L, C), c (N, C), text (N, L_text, C) (Eq. 8).

        F(z) = d1 + d2 + d3 with d1 = gate1 Attn(mod(LN z)), d2 = gate2 Cross(mod(LN(z + d1)), text)
        and d3 = gate3 MLP(mod(LN(z + d1 + d2))).
        """
        modulation = self.adaLN_modulation(c).unsqueeze(1).chunk(9, dim=-1)  # each (N, 1, C)
        (shift1, scale1, gate1), (shift2, scale2, gate2), (shift3, scale3, gate3) = (
            modulation[:3],
            modulation[3:6],
            modulation[6:],
        )
        z = route(x)
        d = gate1 * self.attn(modulate(self.norm1(z), shift1, scale1))
        d2 = self.cross_attn(modulate(self.norm2(z + d), shift2, scale2), text)
        d = torch.addcmul(d, gate2, d2)
        d3 = self.mlp(modulate(self.norm3(z + d), shift3, scale3))
        return torch.addcmul(x + d, gate3, d3)


class TextDiT(DiT):
    """DiT told by a text: y is tokens float (N, L_text, C_text), adaLN sees the timestep alone.

    null_text (L_text, C_text), the features of the empty text, comes from data with captions.
    UserError without it, and where DiT raises it.

    Args:
        class_dropout_prob: share of texts that training replaces by the empty one, in [0, 1);
            guidance needs > 0.
        use_checkpoint: computes a block's activations again in the backward pass, to save memory.
    """

    takes_text: ClassVar[bool] = True
    block: ClassVar[type[nn.Module]] = TextDiTBlock

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1,
        learn_sigma: bool = True,
        null_text: Tensor | None = None,
        router: Router | None = None,
        tasks: int = 1000,
        use_checkpoint: bool = False,
    ) -> None:
        if null_text is None:
            raise UserError("TextDiT needs data with captions: DigitsCaptions or CaptionedLatents")
        super().__init__(
            input_size,
            patch_size,
            in_channels,
            hidden_size,
            depth,
            num_heads,
            mlp_ratio,
            class_dropout_prob,
            num_classes,
            learn_sigma,
            use_checkpoint=use_checkpoint,
        )
        self.class_dropout_prob = class_dropout_prob  # of texts, however many classes there are
        self.y_embedder = nn.Linear(null_text.shape[-1], hidden_size)
        nn.init.xavier_uniform_(self.y_embedder.weight)
        nn.init.zeros_(self.y_embedder.bias)
        self.register_buffer("null_text", null_text.detach().clone())
        self.router = self.router_or_none(router)
        self.router.bind(tasks, [hidden_size] * depth, hidden_size)

    def condition(self, emb: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the timestep's embedding (N, C) and projected text tokens (N, L_text, C)."""
        return emb, self.y_embedder(y)

    def null(self, y: Tensor) -> Tensor:
        """Returns the tokens of the empty text, shaped like y (N, L_text, C_text)."""
        return self.null_text.expand_as(y)
