"""Controls that the paper's reviewers asked for: DTR with one of its properties taken away.

DTR differs from random routing in three: neighbouring tasks overlap most (affinity), tasks get
different amounts of channels of their own (weights), and all blocks agree. Affinity without weights
is DTR with alpha = 1. The definitions are ours: nobody has published these.
"""

__all__ = ["BlockPermutedDTR", "DTRControl", "TimeShuffledDTR", "WeightsOnly"]

import torch
from torch import Tensor

from dtr_lightning import masks
from dtr_lightning.routers.static import MaskRouter


class DTRControl(MaskRouter):
    """What the controls share: DTR's alpha and beta, and a seed, which is the run's.

    Args:
        alpha: shape of DTR's shift over time, > 0.
        beta: share of active channels, in (0, 1].
    """

    def __init__(
        self, alpha: float = 4.0, beta: float = 0.8, seed: int = 0, tasks: int = 1000
    ) -> None:
        super().__init__(tasks)
        self.alpha, self.beta, self.seed = alpha, beta, seed
        masks.dtr(1, 1000, alpha, beta)


class WeightsOnly(DTRControl):
    """DTR's task weights without its affinity: random masks with channels of their own.

    Each of K clusters of tasks owns as many channels as DTR's window moves by from the cluster
    before (a_i = 0, 0, 1, 4, 11, 24, 43, 71 of 768 for K = 8); the rest of C_beta is random for
    every task, so overlaps do not depend on the distance in time: against RTR it isolates the
    weights.

    Args:
        alpha: shape of the shift that the clusters' own channels come from, > 0.
        beta: share of active channels, in (0, 1].
        clusters: number K of contiguous, equal clusters of tasks, 1 to T.
        shared: true draws one table for all blocks, false one for each as in RTR.
    """

    def __init__(
        self,
        alpha: float = 4.0,
        beta: float = 0.8,
        clusters: int = 8,
        shared: bool = False,
        seed: int = 0,
        tasks: int = 1000,
    ) -> None:
        super().__init__(alpha, beta, seed, tasks)
        self.clusters, self.shared = clusters, shared
        masks.clusters_of_tasks(tasks, clusters)

    def key(self, channels: int, block: int) -> object:
        """Returns the width, and the block unless masks are shared."""
        return channels if self.shared else (channels, block)

    def mask(self, channels: int, block: int) -> Tensor:
        """Returns random masks with channels of the clusters' own."""
        generator = masks.seeded(self.seed, block)
        alpha, beta = self.alpha, self.beta
        return masks.weights_only(self.tasks, channels, alpha, beta, self.clusters, generator)


class TimeShuffledDTR(DTRControl):
    """DTR's masks dealt out to the tasks in a random order, the same in all blocks.

    Every mask serves as many tasks as in DTR, but not neighbours: it isolates the order in time.
    """

    def mask(self, channels: int, block: int) -> Tensor:
        """Returns DTR's table with its rows in random order."""
        order = torch.randperm(self.tasks, generator=masks.seeded(self.seed))
        return masks.dtr(self.tasks, channels, self.alpha, self.beta)[order]


class BlockPermutedDTR(DTRControl):
    """DTR with the channels of every block in a random order of its own.

    Within a block all overlaps are DTR's, but blocks no longer agree on what a task reads: it
    isolates that agreement, which RTR lacks as well.
    """

    def key(self, channels: int, block: int) -> object:
        """Returns the block: every block has its own order."""
        return block

    def mask(self, channels: int, block: int) -> Tensor:
        """Returns DTR's table with its channels in the block's order."""
        order = torch.randperm(channels, generator=masks.seeded(self.seed, block))
        return masks.dtr(self.tasks, channels, self.alpha, self.beta)[:, order]
