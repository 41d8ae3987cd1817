"""Loss weights that are learned: uncertainty per cluster of tasks (ANT-UW), or continuous."""

__all__ = ["CUW", "UW"]

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dtr_lightning.diffusion import Process
from dtr_lightning.diffusion import clusters as timestep_clusters
from dtr_lightning.errors import UserError
from dtr_lightning.objectives.loss_weights import LossWeight

OPTIONS: dict[str, Any] = {"lr": 0.025, "weight_decay": 0.0}


class UW(LossWeight):
    """Uncertainty weighting of K clusters of tasks (Go et al. 2023: ANT-UW).

    With L_i the mean of mse + vb over cluster i: sum_i (exp(-s_i) L_i / K + s_i) / 2, where the log
    variances s (K,) start at 0. Every batch holds equally many tasks of each cluster, up to one.

    Args:
        clusters: number K of contiguous clusters of tasks, 1 to the batch size.
        clustering: equal parts of the timeline, by log_snr, or by gradient affinity (Go et al.).
        affinity: a .npy file [T, T], for clustering by affinity.
    """

    optimizer_options: ClassVar[dict[str, Any]] = OPTIONS

    def __init__(
        self,
        clusters: int = 8,
        clustering: timestep_clusters.Clustering = "equal",
        affinity: str | Path | None = None,
    ) -> None:
        super().__init__()
        timestep_clusters.check_options(clusters, clustering, affinity)
        timestep_clusters.check_use(clustering, affinity)
        self.clusters, self.clustering, self.affinity = clusters, clustering, affinity
        self.strata = clusters
        self.s = nn.Parameter(torch.zeros(clusters))

    def bind(self, process: Process) -> None:
        """Takes the process and divides its tasks into clusters."""
        super().bind(process)
        bounds = timestep_clusters.bounds(
            self.clustering, self.clusters, process.log_snr(), self.affinity, process.tasks
        )
        self.register_buffer("bounds", bounds, persistent=False)
        self.intervals = timestep_clusters.intervals(bounds)

    def check(self, n: int) -> None:
        """Raises UserError if a batch of n samples has fewer than one per cluster."""
        timestep_clusters.shares(n, self.clusters)

    def timesteps(self, n: int, device: torch.device) -> Tensor:
        """Draws the tasks t (n,), as many of each cluster, cluster by cluster."""
        return timestep_clusters.stratified(self.process, n, self.intervals, device)

    def forward(self, mse: Tensor, vb: Tensor, t: Tensor) -> Tensor:
        """Returns the sum over the clusters that t has."""
        which = timestep_clusters.cluster_of(t, self.bounds)
        counts = mse.new_zeros(self.clusters).index_add(0, which, torch.ones_like(mse))
        sums = mse.new_zeros(self.clusters).index_add(0, which, mse + vb)
        means = sums / counts.clamp(min=1) / self.clusters
        terms = (torch.exp(-self.s) * means + self.s) / 2
        return torch.where(counts > 0, terms, 0).sum()


class CUW(LossWeight):
    """Continuous uncertainty weighting: exp(-u(tau)) (mse + vb) + u(tau).

    After EDM2 (Karras et al. 2024, Section 2.1 and Appendix B.2): u is linear in 128 fixed random
    Fourier features, together of length about one. It differs in five: u is a function of tau =
    t / (T - 1), not of ln(sigma) / 4; it has a bias; it starts at 0; its weights are not forced to
    a norm; and no lambda(sigma) stands before the loss. It is UW without clusters, for batches of
    any size and for continuous time.

    Args:
        features: number of fixed random Fourier features, at least 1.
    """

    optimizer_options: ClassVar[dict[str, Any]] = OPTIONS

    def __init__(self, features: int = 128) -> None:
        super().__init__()
        if features < 1:
            raise UserError(f"loss_weight.features must be at least 1; got {features}")
        generator = torch.Generator().manual_seed(0)
        frequencies = 2 * math.pi * torch.randn(features, generator=generator)
        phases = 2 * math.pi * torch.rand(features, generator=generator)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.register_buffer("phases", phases, persistent=False)
        self.weight = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.zeros(()))

    def log_variance(self, t: Tensor) -> Tensor:
        """Returns u (N,) at tasks t (N,)."""
        tau = t / (self.process.T - 1)
        features = torch.cos(tau[:, None] * self.frequencies + self.phases) * math.sqrt(
            2 / len(self.phases)
        )
        return features @ self.weight + self.bias

    def forward(self, mse: Tensor, vb: Tensor, t: Tensor) -> Tensor:
        """Returns the mean over the batch."""
        u = self.log_variance(t).float()
        return (torch.exp(-u) * (mse + vb) + u).mean()
