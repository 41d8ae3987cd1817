"""Several networks as one, each an expert for a range of the timesteps (Appendix D)."""

__all__ = ["RangeExperts"]

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dtr_lightning.diffusion.clusters import Interval, cluster_of
from dtr_lightning.models.base import Denoiser
from dtr_lightning.routing import Router


@Denoiser.register  # used like any network, but no choice of `--model`
class RangeExperts(nn.Module):
    """Asks, for every sample, the network that was trained on its original t.

    intervals are the half-open ranges of the networks: in order, without gap from 0 to T. The
    networks are alike but for their weights. They are trained one by one, never through this.
    """

    def __init__(self, networks: Sequence[Denoiser], intervals: Sequence[Interval]) -> None:
        super().__init__()
        self.networks, self.intervals = nn.ModuleList(networks), list(intervals)
        bounds = torch.tensor([0, *(high for _, high in intervals)])
        self.register_buffer("bounds", bounds, persistent=False)
        first = networks[0]
        self.takes_text, self.num_classes = first.takes_text, first.num_classes
        self.class_dropout_prob, self.has_null = first.class_dropout_prob, first.has_null

    @property
    def router(self) -> Router:
        """The router of the first network."""
        return self.networks[0].router

    def null(self, y: Tensor) -> Tensor:
        """Returns the condition that stands for none, shaped like y."""
        return self.networks[0].null(y)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Returns the prediction (N, C_out, H, W) for x (N, C_in, H, W), original t (N,), y (N,).

        t may be fractional. A network is evaluated on its own samples alone.
        """
        return self._ask(t, lambda network, mine: network(x[mine], t[mine], y[mine]))

    def embed(self, t: Tensor) -> Tensor:
        """Returns the embeddings (N, C) of timesteps t (N,), each by its own network."""
        return self._ask(t, lambda network, mine: network.embed(t[mine]))

    def compile(self, **options: Any) -> None:
        """Compiles every network; which of them are asked is decided outside of the graph."""
        for network in self.networks:
            network.compile(**options)

    def compile_blocks(self, **options: Any) -> None:
        """Compiles the blocks of every network."""
        for network in self.networks:
            network.compile_blocks(**options)

    def _ask(self, t: Tensor, part: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        which = cluster_of(t, self.bounds)  # (N,)
        order = which.argsort(stable=True)
        shares = which.bincount(minlength=len(self.networks)).tolist()
        parts = [
            part(network, mine)
            for network, mine in zip(self.networks, order.split(shares), strict=True)
            if len(mine)
        ]
        return torch.cat(parts)[order.argsort()]
