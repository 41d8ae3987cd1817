"""What a router is: a map from the denoising task to what every block may read.

The router owns *what* may be read, a block owns *where* it reads: with F the update of a block, the
paper's Eq. 8 is `x + F(route(x))`. A router makes one route per block, once per step; a route is a
plain function of the features, so blocks never see a mask, a task, alpha or beta.
"""

__all__ = ["Embed", "NoRouting", "Route", "Router"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

Route = Callable[[Tensor], Tensor]
Embed = Callable[[Tensor], Tensor]  # timesteps (N,) -> their embedding (N, C), no label in it


class Router(nn.Module, ABC):
    """Makes the routes of one step; a subclass is a choice of `--router` by its name.

    Constructor arguments are the router's hyperparameters. The model tells the sizes once, through
    `bind`, after its own parameters are initialised: routers without parameters thus start from
    identical weights for one seed.
    """

    masks_only: ClassVar[bool] = False  # whether nothing is learned: it has no parameters
    tasks: int  # the number T of denoising tasks

    def bind(
        self, tasks: int, widths: Sequence[int], emb_channels: int, channel_dim: int = -1
    ) -> None:
        """Takes the sizes: T, the channels that each block reads and those of `emb`.

        channel_dim is the axis of the channels. UserError for a size that the router cannot serve.
        """
        self.tasks, self.blocks = tasks, len(widths)

    @abstractmethod
    def forward(self, t: Tensor, emb: Tensor) -> list[Route]:
        """Returns one route per block from the original timesteps t (N,) and their embedding.

        t is an integer, or fractional in [0, T - 1] where time is continuous: tau = t / (T - 1).
        emb (N, C) is the timestep embedding without the label. State is never written here.
        """

    def penalty(self, t: Tensor, embed: Embed) -> Tensor:
        """Returns the auxiliary loss that training adds, a scalar: zero by default."""
        return torch.zeros((), device=t.device)

    def advance(self, step: int, embed: Embed) -> None:
        """Takes the state to that of a step, a function of (seed, step): only here it changes."""

    def table(self, block: int) -> Tensor | None:
        """Returns the mask table bool[tasks, channels] of a block, or None without fixed masks."""
        return None


def identity(x: Tensor) -> Tensor:
    """Returns x: the route that reads everything."""
    return x


class NoRouting(Router):
    """Reads every channel at every task: the plain network."""

    masks_only = True

    def forward(self, t: Tensor, emb: Tensor) -> list[Route]:
        """Returns the identity for every block."""
        return [identity] * self.blocks
