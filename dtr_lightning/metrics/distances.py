"""Frechet and kernel distance between two sets of features: FID's and KID's formulas.

torchmetrics keeps the sums and gathers them over ranks. Two things are ours: symmetric eigenvalues
(at 512 features a quarter of the time of its unsymmetric ones, and exacter where covariances are
singular), and a generator for KID's subsets, which it draws from the global RNG.
"""

__all__ = ["FrechetDistance", "KernelDistance", "frechet_distance"]

import warnings

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd
from torchmetrics.utilities import dim_zero_cat


def frechet_distance(mu_a: Tensor, sigma_a: Tensor, mu_b: Tensor, sigma_b: Tensor) -> Tensor:
    """Returns |mu_a - mu_b|^2 + tr(Sigma_a + Sigma_b - 2 (Sigma_a Sigma_b)^(1/2)), a scalar.

    Means (D,), covariances (D, D), float64 (Heusel et al. 2017, Eq. 6). With Sigma_a = R R^T the
    eigenvalues of Sigma_a Sigma_b are those of the symmetric R^T Sigma_b R.
    """
    values, vectors = torch.linalg.eigh(sigma_a)
    root = vectors * values.clamp(min=0).sqrt()
    cross = torch.linalg.eigvalsh(root.T @ sigma_b @ root).clamp(min=0).sqrt().sum()
    distance = (mu_a - mu_b).square().sum() + sigma_a.trace() + sigma_b.trace() - 2 * cross
    return distance.clamp(min=0)  # rounding alone makes it negative


class _Given(nn.Module):
    """Takes features for images: one forward pass then serves every metric."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class FrechetDistance(FrechetInceptionDistance):
    """torchmetrics' FID of given features (N, D), real or not; `reset` keeps the real ones."""

    def __init__(self, num_features: int) -> None:
        super().__init__(feature=_Given(num_features), reset_real_features=False)

    def compute(self) -> Tensor:
        """Returns the Frechet distance, a float64 scalar."""
        return frechet_distance(*self.moments(real=True), *self.moments(real=False))

    def moments(self, real: bool) -> tuple[Tensor, Tensor]:
        """Returns mean (D,) and covariance (D, D), ddof 1, of one side, float64."""
        side = "real" if real else "fake"
        total, squares, n = (
            getattr(self, f"{side}_features_{sum}") for sum in ("sum", "cov_sum", "num_samples")
        )
        mu = total / n
        return mu, (squares - n * torch.outer(mu, mu)) / (n - 1)


class KernelDistance(KernelInceptionDistance):
    """torchmetrics' KID of given features (N, D), over subsets of at most 1,000 (ours: seeded).

    The estimate is unbiased in N, unlike the Frechet distance. Its standard deviation is that over
    subsets, which share images: of few samples the mean is less certain than it says. `reset` keeps
    the real features.
    """

    def __init__(self, num_features: int, subsets: int = 100) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*save all extracted features.*")
            super().__init__(_Given(num_features), subsets=subsets, reset_real_features=False)
        for state in ("real_features", "fake_features"):
            # Concatenated before the exchange: ranks may hold different numbers of batches.
            self.add_state(state, [], dist_reduce_fx="cat")

    def compute(self) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation of the squared MMD over the subsets."""
        real, fake = (dim_zero_cat(part) for part in (self.real_features, self.fake_features))
        size = min(self.subset_size, len(real), len(fake))
        generator = torch.Generator().manual_seed(0)

        def draw(features: Tensor) -> Tensor:
            order = torch.randperm(len(features), generator=generator)[:size]
            return features[order.to(features.device)].double()

        values = torch.stack([poly_mmd(draw(real), draw(fake)) for _ in range(self.subsets)])
        return values.mean(), values.std(unbiased=False)
