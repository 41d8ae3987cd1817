"""Controls, some asked for by the paper's reviewers: DTR with some of its properties taken away.

DTR differs from random routing in four: any two tasks share more channels (at C = 64 and beta = 0.8
47.5 on average, random masks 40.6), neighbouring tasks share most (affinity), tasks get different
amounts of channels of their own (weights), and all blocks agree. Affinity without weights is DTR
with alpha = 1. The definitions are ours: nobody has published these.
"""

__all__ = ["BlockPermutedDTR", "DTRControl", "SharedCore", "TimeShuffledDTR", "WeightsOnly"]

import math

import torch
from torch import Tensor

from dtr_lightning.errors import UserError
from dtr_lightning.routing import masks
from dtr_lightning.routing.tables import MaskRouter
from dtr_lightning.seeds import generator_of


class DTRControl(MaskRouter):
    """What the controls share: DTR's alpha and beta, and a seed, which is the run's.

    Args:
        alpha: shape of DTR's shift over time, > 0.
        beta: share of active channels, in (0, 1].
    """

    def __init__(self, alpha: float = 4.0, beta: float = 0.8, seed: int = 0) -> None:
        super().__init__()
        self.alpha, self.beta, self.seed = alpha, beta, seed
        masks.dtr(1, 1000, alpha, beta)


class WeightsOnly(DTRControl):
    """DTR's task weights without its affinity: random masks with channels of their own.

    Each of K clusters of tasks owns as many channels as DTR's window moves by from the cluster
    before (a_i = 0, 0, 1, 4, 11, 24, 43, 71 of 768 for K = 8); the rest of C_beta is random for
    every task, so overlaps do not depend on the distance in time. It does not isolate the weights:
    any two tasks share more channels than under RTR (at C = 64 48.0 on average against 40.6; DTR
    47.5). SharedCore with `per_block` shares as many and no task has channels of its own: against
    that one it isolates the weights.

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
    ) -> None:
        super().__init__(alpha, beta, seed)
        self.clusters, self.shared = clusters, shared

    def key(self, channels: int, block: int) -> object:
        """Returns the width, and the block unless masks are shared."""
        return channels if self.shared else (channels, block)

    def mask(self, channels: int, block: int) -> Tensor:
        """Returns random masks with channels of the clusters' own."""
        generator = generator_of(self.seed, block)
        alpha, beta = self.alpha, self.beta
        return masks.weights_only(self.tasks, channels, alpha, beta, self.clusters, generator)


class SharedCore(DTRControl):
    """Masks that share as much as DTR's and nothing else: a core for all tasks, the rest random.

    Channels [0, k), the core, are on for all tasks in all blocks; a task fills up to C_beta with
    a random set of the others, in every block another. No task has channels of its own, neighbours
    share no more than others, and blocks agree on the core alone. Against RTR it isolates how much
    tasks share.

    Args:
        alpha: exponent of the DTR that the core is to match; without effect where `core` is given
        beta: share of active channels
        core: share of the channels in the core, from 0 (RTR) to beta (one mask for all tasks); by
            default the smallest core with which two tasks share as many channels as DTR's do on
            average (`masks.core_size`: 47 of 64, and 47.9 shared)
        per_block: whether every block has a core of its own, a random set of k channels
        seed: of the masks; the run's
    """

    def __init__(
        self,
        alpha: float = 4.0,
        beta: float = 0.8,
        core: float | None = None,
        per_block: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(alpha, beta, seed)
        if core is not None and not 0 <= core <= beta:
            raise UserError(f"core must lie in 0 to beta = {beta}, a share of channels; got {core}")
        self.core, self.per_block = core, per_block

    def key(self, channels: int, block: int) -> object:
        """Returns the block: every block draws its own channels beside the core."""
        return block

    def mask(self, channels: int, block: int) -> Tensor:
        """Returns masks around the core."""
        if self.core is None:
            core = masks.core_size(self.tasks, channels, self.alpha, self.beta)
        else:
            core = math.floor(channels * self.core + 1e-9)
        generator = generator_of(self.seed, block)
        table = masks.shared_core(self.tasks, channels, core, self.beta, generator)
        return table[:, torch.randperm(channels, generator=generator)] if self.per_block else table


class TimeShuffledDTR(DTRControl):
    """DTR's masks dealt out to the tasks in a random order, the same in all blocks.

    Every mask serves as many tasks as in DTR, but not neighbours: against DTR it isolates the order
    in time. Two tasks share as many channels as in DTR.
    """

    def mask(self, channels: int, block: int) -> Tensor:
        """Returns DTR's table with its rows in random order."""
        order = torch.randperm(self.tasks, generator=generator_of(self.seed))
        return masks.dtr(self.tasks, channels, self.alpha, self.beta)[order]


class BlockPermutedDTR(DTRControl):
    """DTR with the channels of every block in a random order of its own.

    Within a block all overlaps are DTR's, but blocks no longer agree on what a task reads: against
    DTR it isolates that agreement, which RTR lacks as well.
    """

    def key(self, channels: int, block: int) -> object:
        """Returns the block: every block has its own order."""
        return block

    def mask(self, channels: int, block: int) -> Tensor:
        """Returns DTR's table with its channels in the block's order."""
        order = torch.randperm(channels, generator=generator_of(self.seed, block))
        return masks.dtr(self.tasks, channels, self.alpha, self.beta)[:, order]
