"""Switch-DiT's router: a soft mask from a sparse mixture of experts, and the diffusion prior loss.

Park et al., *Switch Diffusion Transformer: Synergizing Denoising Tasks with Sparse
Mixture-of-Experts*, ECCV 2024. Parameter names below the router are those of the official code,
so its checkpoints load as they are.
"""

__all__ = ["Switch"]

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtr_lightning.errors import UserError, choices
from dtr_lightning.routing import masks
from dtr_lightning.routing.router import Embed, Route, Router

EPS = 1e-6  # added inside the logarithms of the divergence
MASKS = ("residual", "sum")


class LinearExperts(nn.Module):
    """M linear maps E_j(z) = z w_j + b_j with w [M, C_in, C_out] zero and b [M, C] constant."""

    def __init__(self, experts: int, channels: int, bias: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(experts, channels, channels))
        self.b = nn.Parameter(torch.full((experts, channels), bias))

    def forward(self, z: Tensor, gates: Tensor, channel_dim: int) -> Tensor:
        """Returns sum_j g_j E_j(z) in the shape of z (N, ...), for gates g (N, M).

        Maps of one input add up to one map, so a sample's matrices are combined before they meet
        its L tokens: N (L + M) C^2 products, where one product per expert takes N L M C^2 and
        one per selected expert needs shapes that depend on the data. Memory is N C^2 a block.
        """
        gates = gates.to(self.w.dtype)
        w = (gates @ self.w.flatten(1)).view(-1, *self.w.shape[1:])  # (N, C_in, C_out)
        b = gates @ self.b  # (N, C)
        if channel_dim == 1:
            return torch.baddbmm(b[:, :, None], w.mT, z.flatten(2)).view(z.shape)
        return torch.baddbmm(b[:, None], z, w)


class Mixture(nn.Module):
    """The gate and the experts of one block; the gate sees the timestep embedding only."""

    def __init__(
        self,
        experts: int,
        channels: int,
        emb_channels: int,
        bias: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        device = torch.get_default_device()
        linear = nn.utils.skip_init(nn.Linear, emb_channels, experts, device=device)
        nn.init.xavier_uniform_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
        self.f_gate = nn.Sequential(nn.SiLU(), linear)
        self.experts = LinearExperts(experts, channels, bias)


class Switch(Router):
    """Multiplies what a block reads by a mask that k of M experts make of it.

    With p = softmax of the block's gate, a linear map of SiLU(emb), and the sum over the k largest
    p_j, not renormalised, `residual` is the official code's mask 1 + sum p_j E_j(z): it starts as
    exactly one. `sum` is the paper's sum p_j E_j(z); its experts start as the constant one,
    so that the mask starts as sum p_j > 0, one number per sample and block.

    The penalty is the diffusion prior loss: the gates of all N blocks, matched one to one with the
    N M columns of DTR's mask table of share k / M. Gates start from the run's seed.

    Args:
        experts: number M of experts in each block.
        k: how many of them a task uses, 1 to M.
        weight: lambda_dp, the weight of the diffusion prior loss, 0 or more.
        alpha: shape of the prior's DTR table, > 0.
        match_every: training steps between two matchings of gates and prior.
        mask: residual is the official code's mask, sum the paper's.
    """

    def __init__(
        self,
        experts: int = 3,
        k: int = 2,
        weight: float = 1.0,
        alpha: float = 4.0,
        match_every: int = 1,
        mask: Literal["residual", "sum"] = "residual",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if experts < 1:
            raise UserError(f"experts must be 1 or more; got {experts}")
        if not 1 <= k <= experts:
            raise UserError(f"k must lie in 1..{experts}, the number of experts; got {k}")
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"the prior's weight must be 0 or more and finite; got {weight}")
        if match_every < 1:
            raise UserError(f"match_every must be 1 step or more; got {match_every}")
        if mask not in MASKS:
            raise choices("mask of Switch", mask, MASKS)
        masks.dtr(1, experts, alpha, k / experts)  # a wrong alpha is told here, not in the model
        self.experts, self.k, self.weight, self.alpha = experts, k, weight, alpha
        self.match_every, self.mask, self.seed = match_every, mask, seed

    def bind(
        self, tasks: int, widths: Sequence[int], emb_channels: int, channel_dim: int = -1
    ) -> None:
        """Makes every block's gate and experts, the prior, and the identity matching."""
        super().bind(tasks, widths, emb_channels, channel_dim)
        self.channel_dim = channel_dim
        generator = torch.Generator().manual_seed(self.seed)
        bias = 0.0 if self.mask == "residual" else 1.0
        self.routers = nn.ModuleList(
            Mixture(self.experts, channels, emb_channels, bias, generator) for channels in widths
        )
        columns = self.blocks * self.experts
        prior = masks.dtr(self.tasks, columns, self.alpha, self.k / self.experts)
        self.register_buffer("prior", prior, persistent=False)  # bool[tasks, N M]
        # the prior's column of every gate, gate i M + j being expert j of block i
        self.register_buffer("assignment", torch.arange(columns))
        self.register_load_state_dict_pre_hook(_keep_assignment)

    def probabilities(self, emb: Tensor) -> Tensor:
        """Returns p (N, blocks, M), what every gate gives its experts, of embeddings (N, C)."""
        gates = [router.f_gate[1] for router in self.routers]  # one product for all blocks
        weight = torch.cat([gate.weight for gate in gates])
        bias = torch.cat([gate.bias for gate in gates])
        logits = F.linear(F.silu(emb), weight, bias).view(-1, self.blocks, self.experts)
        return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))

    def selected(self, p: Tensor) -> Tensor:
        """Returns 1 at the k largest p of every block, else 0, in the shape of p (N, blocks, M)."""
        return torch.zeros_like(p).scatter(-1, p.topk(self.k, dim=-1).indices, 1.0)

    def forward(self, t: Tensor, emb: Tensor) -> list[Route]:
        """Returns z -> mask(z) * z for every block, in the dtype of the features."""
        p = self.probabilities(emb)
        gates = p * self.selected(p)  # (N, blocks, M)
        return [
            self._route(router.experts, gates[:, block])
            for block, router in enumerate(self.routers)
        ]

    def _route(self, experts: LinearExperts, gates: Tensor) -> Route:
        def route(z: Tensor) -> Tensor:
            mask = experts(z, gates, self.channel_dim).to(z.dtype)
            return torch.addcmul(z, z, mask) if self.mask == "residual" else z * mask

        return route

    def penalty(self, t: Tensor, embed: Embed) -> Tensor:
        """Returns weight times the mean divergence of gates from the matched prior at t (N,).

        Both are distributions over the N M columns: p / N, and the prior's row over its sum k N.
        Between tasks the prior is that of the nearest one.
        """
        if self.weight == 0:
            return super().penalty(t, embed)
        p = self.probabilities(embed(t)).flatten(1) / self.blocks  # (N, blocks M)
        task = t.round().long()
        target = self.prior[task][:, self.assignment] / (self.k * self.blocks)
        return self.weight * jsd(p, target).mean()

    @torch.no_grad()
    def advance(self, step: int, embed: Embed) -> None:
        """Matches gates and prior anew, every `match_every` steps; a function of (seed, step)."""
        if self.weight == 0 or step % self.match_every:
            return
        p = self.probabilities(embed(torch.arange(self.tasks, device=self.prior.device)))
        cost = costs(self.selected(p).flatten(1), self.prior).cpu().numpy()
        assignment = match(cost, np.random.default_rng((self.seed, step)))
        self.assignment.copy_(torch.from_numpy(assignment))


def jsd(a: Tensor, b: Tensor) -> Tensor:
    """Returns the Jensen-Shannon divergence (N,), in nats, of the rows of a and b, both (N, D)."""
    log_mean = ((a + b) / 2 + EPS).log()
    parts = a * ((a + EPS).log() - log_mean) + b * ((b + EPS).log() - log_mean)
    return parts.sum(-1) / 2


def costs(gates: Tensor, prior: Tensor) -> Tensor:
    """Returns [D, D]: at how many tasks column a of gates differs from column b of the prior.

    Both are 0/1 tables [tasks, D]: |g - w| is g + w - 2 g w, whose sum is one product.
    """
    gates, prior = gates.float(), prior.float()
    return gates.sum(0)[:, None] + prior.sum(0) - 2 * gates.T @ prior


def match(cost: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the column of every row, int64 [D], in a one-to-one matching of least cost [D, D].

    Ties fall by chance: both sides are shuffled first.
    """
    from scipy.optimize import linear_sum_assignment  # 0.1 s, which only this router pays

    rows, columns = rng.permutation(len(cost)), rng.permutation(len(cost))
    matched = np.empty(len(cost), dtype=np.int64)
    matched[rows] = columns[linear_sum_assignment(cost[np.ix_(rows, columns)])[1]]
    return matched


def _keep_assignment(router: Switch, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Keeps the matching where a state has none, as in official checkpoints, which derive it."""
    state.setdefault(f"{prefix}assignment", router.assignment)
