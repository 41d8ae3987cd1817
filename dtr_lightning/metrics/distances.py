"""Frechet and kernel distance between two sets of features: FID's and KID's formulas.

torchmetrics keeps the sums and gathers them over ranks. Ours are symmetric eigenvalues (at 512
features a quarter of the time of its unsymmetric ones, and exacter where covariances are singular)
and the rows for KID, of which it would keep all and draw subsets from the global RNG.
"""

__all__ = ["FrechetDistance", "KernelDistance", "frechet_distance"]

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from dtr_lightning.metrics.reservoir import BoundedRows


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


class KernelDistance(nn.Module):
    """KID: squared MMD of given features (N, D) over subsets of at most 1,000, drawn by a seed.

    Of either side 10,000 rows are kept, from which subsets are drawn. The estimate is unbiased in
    N, unlike the Frechet distance. Its standard deviation is that over subsets, which share images:
    of few samples the mean is less certain than it says. `reset` keeps the real features.
    """

    subset_size = 1000

    def __init__(self, num_features: int, subsets: int = 100) -> None:
        super().__init__()
        self.num_features, self.subsets = num_features, subsets
        self.real_features, self.fake_features = BoundedRows(), BoundedRows()

    def update(self, features: Tensor, real: bool, index: Tensor | None = None) -> None:
        """Takes features (N, D) of images with global indices (N,), by default the next ones."""
        assert features.shape[1] == self.num_features
        (self.real_features if real else self.fake_features).update(features, index)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation of the squared MMD over the subsets."""
        real, fake = self.real_features.compute(), self.fake_features.compute()
        size = min(self.subset_size, len(real), len(fake))
        generator = torch.Generator().manual_seed(0)

        def draw(features: Tensor) -> Tensor:
            order = torch.randperm(len(features), generator=generator)[:size]
            return features[order.to(features.device)].double()

        values = torch.stack([poly_mmd(draw(real), draw(fake)) for _ in range(self.subsets)])
        return values.mean(), values.std(unbiased=False)

    def reset(self) -> None:
        """Forgets the fakes."""
        self.fake_features.reset()
