"""Maximum roaming: masks that wander until every task has read every channel."""

__all__ = ["MaxRoaming"]

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dtr_lightning.errors import UserError
from dtr_lightning.routing import masks
from dtr_lightning.routing.router import Embed
from dtr_lightning.routing.tables import MaskRouter
from dtr_lightning.seeds import generator_of


class MaxRoaming(MaskRouter):
    """Random masks of which each swaps one channel every `interval` steps (Pascal et al., 2021).

    At the start every channel is in some mask. A swap drops a random active channel and takes up a
    random one that this mask has never had; a block stops when its masks have had all channels.
    C_beta channels are active at all times, as in R-TR and DTR (the original rounds up). How to use
    it for diffusion is our choice: the paper (Table 8) does not say.

    Masks, channels visited and the number of swaps done are state, kept in checkpoints. It is a
    function of (seed, step), computed on the CPU: equal on all ranks and after a resume.

    Args:
        beta: share of active channels, in (0, 1].
        clusters: number of masks per block, each of an equal part of the timeline; null: one per
            task.
        interval: training steps between two swaps; null: they end after 0.9 of the run's steps.
    """

    def __init__(
        self,
        beta: float = 0.8,
        clusters: int | None = None,
        interval: int | None = None,
        seed: int = 0,
        steps: int = 400_000,
    ) -> None:
        super().__init__()
        self.beta, self.seed, self.steps = beta, seed, steps
        self.clusters = clusters
        if interval is not None and interval < 1:
            raise UserError(f"interval must be at least 1 step; got {interval}")
        self.interval = interval
        self.register_load_state_dict_post_hook(_forget)

    @property
    def height(self) -> int:
        """The number of masks per block: K."""
        return self.tasks if self.clusters is None else self.clusters

    def key(self, channels: int, block: int) -> object:
        """Returns the block: masks wander independently in every block."""
        return block

    def mask(self, channels: int, block: int) -> Tensor:
        """Returns the masks at the start, bool[K, channels]."""
        generator = generator_of(self.seed, block, 0)
        return masks.cover(self.height, channels, self.beta, generator)

    def bind(
        self, tasks: int, widths: Sequence[int], emb_channels: int, channel_dim: int = -1
    ) -> None:
        """Draws the masks at the start; a UserError if so few cannot hold every channel."""
        if self.clusters is not None:
            masks.clusters_of_tasks(tasks, self.clusters)
        super().bind(tasks, widths, emb_channels, channel_dim)
        self.register_buffer("tables", self.tables)
        self.register_buffer("visited", self.tables.clone())
        self.register_buffer("swaps", torch.zeros((), dtype=torch.long))
        self.most = max(c - masks.active_channels(c, self.beta) for c in widths)  # swaps
        if self.interval is None:
            self.interval = max(1, int(0.9 * self.steps / max(self.most, 1)))
        self.done: int | None = 0

    def table(self, block: int) -> Tensor:
        """Returns the present mask table bool[tasks, channels] of a block."""
        t = torch.arange(self.tasks, device=self.tables.device)
        return super().table(block)[t * self.height // self.tasks]

    def rows(self, t: Tensor) -> Tensor:
        """Returns the present masks of tasks t: bool (N, sum of C)."""
        t = t.round().long() if t.is_floating_point() else t
        return super().rows(t * self.height // self.tasks)

    @torch.no_grad()
    def advance(self, step: int, embed: Embed) -> None:
        """Makes the swaps that are due at a step, one per `interval`; in place."""
        assert self.interval is not None  # since `bind`
        due = min(step // self.interval, self.most)
        if due == self.done:  # known here: to ask the buffer would wait for the device
            return
        tables, visited, done = self.tables.cpu(), self.visited.cpu(), int(self.swaps)
        if due < done:
            start = [self.mask(c, block) for block, c in enumerate(self.widths)]
            tables, done = torch.cat(start, 1), 0
            visited = tables.clone()
        for number in range(done, due):
            parts = zip(tables.split(self.widths, 1), visited.split(self.widths, 1), strict=True)
            for block, (active, seen) in enumerate(parts):
                if not seen.all():
                    _swap(active, seen, generator_of(self.seed, block, number + 1))
        self.tables.copy_(tables)
        self.visited.copy_(visited)
        self.swaps.fill_(due)
        self.done = due


def _swap(active: Tensor, visited: Tensor, generator: torch.Generator) -> None:
    new, old = torch.rand(2, *active.shape, generator=generator)
    new = new.masked_fill_(visited, -1).argmax(1, keepdim=True)
    old = old.masked_fill_(~active, -1).argmax(1, keepdim=True)
    active.scatter_(1, old, False).scatter_(1, new, True)
    visited.scatter_(1, new, True)


def _forget(router: nn.Module, keys: object) -> None:
    router.done = None  # a loaded state has swaps of its own
