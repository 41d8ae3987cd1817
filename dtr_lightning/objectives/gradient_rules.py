"""Gradient rules: how the gradients of several clusters of tasks become one.

They are those of Go et al., *Addressing Negative Transfer in Diffusion Models*, 2023.
With K clusters and D parameters, nothing larger than (K, D) is held.
"""

__all__ = [
    "ClusterLoss",
    "Gradients",
    "Joint",
    "NashMTL",
    "PCGrad",
    "PerCluster",
    "Reduce",
    "gram",
    "nash_weights",
    "project_conflicts",
]

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dtr_lightning.diffusion import clusters as timestep_clusters
from dtr_lightning.errors import UserError

ClusterLoss = Callable[[int], Tensor]  # cluster i -> its scalar loss L_i, by a forward of its own
Reduce = Callable[[Tensor], Tensor]  # flat float32 gradient -> its mean over all processes


class Gradients(nn.Module, ABC):
    """Makes the gradient of a step; a subclass is a choice of `--gradients` by its name.

    `strata` is the number of clusters that every batch has equally many samples of.
    """

    strata: int = 1

    @property
    @abstractmethod
    def joint(self) -> bool:
        """Whether it is the ordinary gradient of the batch's loss, not `PerCluster.combine`."""

    def __init__(self) -> None:
        super().__init__()

    def bind(self, log_snr: Tensor, within: timestep_clusters.Interval | None = None) -> None:
        """Takes log SNR float64[T] of all tasks, and the range [low, high) that is trained."""

    def check(self, n: int) -> None:
        """Raises UserError if a batch of n samples (of one process) is too small."""


class Joint(Gradients):
    """The ordinary gradient of the whole batch."""

    joint = True


class PerCluster(Gradients, ABC):
    """Takes the gradient of each of K clusters of tasks; a subclass combines them.

    Args:
        clusters: number K of contiguous clusters of tasks, 2 to the batch size.
        clustering: equal parts of the timeline, by log_snr, or by gradient affinity (Go et al.).
        affinity: a .npy file [T, T], for clustering by affinity.
    """

    joint = False
    max_norm = 0.0

    def __init__(
        self,
        clusters: int = 8,
        clustering: timestep_clusters.Clustering = "equal",
        affinity: str | Path | None = None,
    ) -> None:
        super().__init__()
        if clusters < 2:
            raise UserError(
                f"{type(self).__name__} combines at least 2 clusters, and Joint needs none; "
                f"got {clusters}"
            )
        timestep_clusters.check_options(clusters, clustering, affinity)
        timestep_clusters.check_use(clustering, affinity)
        self.clusters, self.clustering, self.affinity = clusters, clustering, affinity
        self.strata = clusters

    def bind(self, log_snr: Tensor, within: timestep_clusters.Interval | None = None) -> None:
        """Divides the tasks into clusters."""
        bounds = timestep_clusters.bounds(
            self.clustering, self.clusters, log_snr, self.affinity, within
        )
        self.register_buffer("bounds", bounds, persistent=False)
        self.intervals = timestep_clusters.intervals(bounds)

    def check(self, n: int) -> None:
        """Raises UserError if a batch of n samples has fewer than one per cluster."""
        timestep_clusters.shares(n, self.clusters)

    @abstractmethod
    def merge(self, grads: Tensor, step: int) -> Tensor:
        """Returns the combined gradient (D,) of the gradients (K, D) of L_1..L_K at a step."""

    def weights_at(self, step: int) -> Tensor | None:
        """Returns weights a (K,) where the gradient is known to be sum_i a_i g_i / K, or None."""
        return None

    def combine(
        self,
        parameters: Sequence[nn.Parameter],
        own: Sequence[nn.Parameter],
        cluster_loss: ClusterLoss,
        reduce: Reduce,
        step: int,
    ) -> Tensor:
        """Sets the gradients of a step, and returns the mean loss over the clusters, detached.

        The network's parameters get the combined gradient, the loss weight's own ones (if any) the
        mean over clusters. cluster_loss is called once for each cluster, in order.
        """
        both = [*parameters, *own]
        sizes = [_size(parameters), _size(own)]
        weights = self.weights_at(step)
        height = self.clusters if weights is None else 1
        rows = torch.zeros(height, sum(sizes), device=both[0].device)
        mean, one = rows.new_full((), 1 / self.clusters), rows.new_ones(())
        total_loss = rows.new_zeros(())
        for i in range(self.clusters):
            loss = cluster_loss(i)
            total_loss += loss.detach()
            if weights is None:
                _add_gradient(rows[i], loss, both, [one] * len(both))
                rows[i] = reduce(rows[i])
            else:
                scales = [weights[i] * mean] * len(parameters) + [mean] * len(own)
                _add_gradient(rows[0], loss, both, scales)
        if weights is None:
            shared, rest = rows.split(sizes, dim=1)
            combined, rest = self.merge(shared, step), rest.mean(0)
        else:
            combined, rest = reduce(rows[0]).split(sizes)
        if self.max_norm:
            combined *= (self.max_norm / (combined.norm() + 1e-6)).clamp(max=1)
        _assign(parameters, combined)
        _assign(own, rest)
        return total_loss * mean


class PCGrad(PerCluster):
    """Gradient surgery: removes from each gradient what conflicts with another (Yu et al. 2020).

    It acts on the gradients of L_i / K, in orders that are a function of (seed, step) and thus the
    same in all processes.
    """

    def __init__(
        self,
        clusters: int = 8,
        clustering: timestep_clusters.Clustering = "equal",
        affinity: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(clusters, clustering, affinity)
        self.seed = seed

    def merge(self, grads: Tensor, step: int) -> Tensor:
        """Returns the sum of the projected gradients, over K."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + step)
        return project_conflicts(grads, generator).div_(self.clusters)


class NashMTL(PerCluster):
    """Nash bargaining: sum_i a_i g_i / K with G a = 1 / a (Navon et al. 2022, Section 3).

    The weights a are kept in the checkpoint; a step that does not solve for them costs one gradient
    of the weighted loss.

    Args:
        update_every: training steps between two solutions for the weights, at least 1.
        max_norm: norm that the combined gradient is clipped to; 0: not.
    """

    def __init__(
        self,
        clusters: int = 8,
        clustering: timestep_clusters.Clustering = "equal",
        affinity: str | Path | None = None,
        update_every: int = 25,
        max_norm: float = 1.0,
    ) -> None:
        super().__init__(clusters, clustering, affinity)
        if update_every < 1:
            raise UserError(f"gradients.update_every must be at least 1; got {update_every}")
        if not max_norm >= 0:
            raise UserError(f"gradients.max_norm must be 0 (no clipping) or more; got {max_norm}")
        self.update_every, self.max_norm = update_every, max_norm
        self.register_buffer("weights", torch.ones(clusters))

    def weights_at(self, step: int) -> Tensor | None:
        """Returns the weights (K,) except at steps that solve for new ones."""
        return self.weights if step % self.update_every else None

    def merge(self, grads: Tensor, step: int) -> Tensor:
        """Returns the weighted mean of the gradients by new weights."""
        self.weights.copy_(nash_weights(gram(grads)))
        return self.weights.to(grads) / self.clusters @ grads


def _size(parameters: Sequence[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _add_gradient(
    total: Tensor, loss: Tensor, parameters: Sequence[nn.Parameter], scales: Sequence[Tensor]
) -> None:
    """Adds the gradient of a loss, scaled per parameter, to the flat total (D,)."""
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    parts = total.split([p.numel() for p in parameters])
    for part, grad, scale in zip(parts, grads, scales, strict=True):
        if grad is not None:
            part.addcmul_(grad.flatten(), scale)


def _assign(parameters: Sequence[nn.Parameter], flat: Tensor) -> None:
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p).to(p.dtype)


RIDGE = 1e-12  # keeps Nash weights finite where gradients cancel; far below float32's noise
CHUNK = 2**20  # parameters that are float64 at a time


def gram(grads: Tensor) -> Tensor:
    """Returns the inner products float64[K, K] of gradients (K, D), on the CPU."""
    total = torch.zeros(len(grads), len(grads), dtype=torch.float64, device=grads.device)
    for chunk in grads.split(CHUNK, dim=1):
        chunk = chunk.double()
        total += chunk @ chunk.T
    return total.cpu()


def project_conflicts(
    grads: Tensor, generator: torch.Generator | None = None, orders: Tensor | None = None
) -> Tensor:
    """Returns the sum (D,) of gradients (K, D) freed of conflicts (Yu et al. 2020, Algorithm 1).

    Each g_i loses its part along every original g_j with which it conflicts, <g_i, g_j> < 0 at that
    moment. The order of j is random, or row i of orders int64[K, K], and includes i as in the
    official code. Every g_i stays a combination of the originals, so their inner products suffice.
    """
    clusters = len(grads)
    if orders is None:
        orders = torch.stack([torch.randperm(clusters, generator=generator) for _ in grads])
    products = gram(grads)
    coefficients = torch.eye(clusters, dtype=torch.float64)
    for own, order in zip(coefficients, orders.tolist(), strict=True):
        for j in order:
            product = own @ products[j]
            if product < 0:
                own[j] -= product / products[j, j]
    return coefficients.sum(0).to(grads) @ grads


def nash_weights(gram: Tensor) -> Tensor:
    """Returns a > 0, float64[K], with G a = 1 / a for inner products G [K, K] (Navon et al. 2022).

    So the combined gradient has length sqrt(K) whatever the scale of the losses. It is the minimum
    of a'Ga / 2 - sum log a, found by damped Newton steps on gradients of length one. A zero
    gradient takes no part and gets the mean weight of the others; where gradients cancel (sum a g =
    0, no solution) a ridge bounds the weights; all are 1 where G is not finite or zero.
    """
    gram = gram.double().cpu()
    weights = torch.ones(len(gram), dtype=torch.float64)
    lengths = gram.diagonal().sqrt()
    some = lengths > 0
    if not gram.isfinite().all() or not some.any():
        return weights
    cosines = gram[some][:, some] / lengths[some].outer(lengths[some])
    weights[some] = _nash_of_unit_gradients(cosines) / lengths[some]
    weights[~some] = weights[some].mean()
    return weights


def _nash_of_unit_gradients(cosines: Tensor) -> Tensor:
    a = torch.ones(len(cosines), dtype=torch.float64)
    ridged = cosines + RIDGE * torch.eye(len(a), dtype=torch.float64)
    for _ in range(200):
        slope = ridged @ a - 1 / a
        step = torch.linalg.solve(ridged + torch.diag(a**-2), slope)
        decrement = (slope @ step).clamp(min=0).sqrt()
        a = a - step / (1 + decrement)  # the objective is self-concordant: a stays positive
        if decrement < 1e-8:
            break
    return a
