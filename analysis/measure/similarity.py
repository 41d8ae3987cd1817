"""How alike the features, or the gradients, of tasks are: HSIC, CKA, cosines and projections.

CKA is that of Kornblith et al., *Similarity of Neural Network Representations Revisited*, 2019,
with linear kernels: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of Gram matrices K = X X', L = Y Y'.
The unbiased HSIC is that of Song et al., *Feature Selection via Dependence Maximization*, 2012.
"""

__all__ = [
    "Estimator",
    "Minibatches",
    "Projection",
    "cka",
    "cosines",
    "gram",
    "hsic",
    "interpolated",
]

from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor

from dtr_lightning.errors import UserError, choices

Estimator = Literal["unbiased", "biased"]
LEAST = 4  # images of a minibatch, below which the unbiased HSIC is not defined
PARTS = 4  # of a projection: its error is estimated from how far they differ
CHUNK = 2**20  # numbers that are projected at once, which bounds the memory


def gram(features: Tensor) -> Tensor:
    """Returns the Gram matrix float64 (n, n) of features (n, ...), centred over the n images.

    HSIC does not see the centring; without it a large common part would cost digits in float32.
    """
    centred = (features - features.mean(0)).flatten(1)
    return (centred @ centred.T).cpu().double()


def _centred(grams: Tensor, estimator: Estimator) -> Tensor:
    """Returns Gram matrices (..., n, n) so that HSIC is their inner product, flat: (..., n n)."""
    n = grams.shape[-1]
    if estimator not in get_args(Estimator):
        raise choices("estimator", estimator, get_args(Estimator))
    if n < LEAST:
        raise UserError(f"CKA needs minibatches of at least {LEAST} images; got {n}")
    if estimator == "biased":
        rows = grams.mean(-1, keepdim=True)
        centred = (grams - rows - rows.mT + rows.mean(-2, keepdim=True)) / (n - 1)
    else:
        grams = grams - torch.diag_embed(grams.diagonal(dim1=-2, dim2=-1))
        rows = grams.sum(-1, keepdim=True)
        centred = grams - (rows + rows.mT - rows.sum(-2, keepdim=True) / (n - 1)) / (n - 2)
        centred = centred - torch.diag_embed(centred.diagonal(dim1=-2, dim2=-1))
        centred = centred / (n * (n - 3)) ** 0.5
    return centred.flatten(-2)


def hsic(k: Tensor, l: Tensor, estimator: Estimator = "unbiased") -> Tensor:  # noqa: E741
    """Returns the HSIC of two Gram matrices (n, n) of the same n > 3 images."""
    return _centred(k, estimator) @ _centred(l, estimator)


def cka(x: Tensor, y: Tensor, estimator: Estimator = "unbiased") -> Tensor:
    """Returns the linear CKA of features x (n, D) and y (n, D') of the same n > 3 images."""
    minibatches = Minibatches(estimator)
    minibatches.add(torch.stack([gram(x), gram(y)]))
    return minibatches.cka()[0, 1]


class Minibatches:
    """Sums HSIC over minibatches, for every pair of T tasks; CKA divides the sums."""

    def __init__(self, estimator: Estimator = "unbiased") -> None:
        self.estimator, self.sums = estimator, torch.zeros((), dtype=torch.float64)

    def add(self, grams: Tensor) -> None:
        """Takes the Gram matrices (T, n, n) of one minibatch of n > 3 images, one per task."""
        flat = _centred(grams, self.estimator)
        self.sums = self.sums + flat @ flat.T

    def cka(self) -> Tensor:
        """Returns the CKA float64 (T, T); nan where features are the same for all images."""
        return cosines(self.sums)


def cosines(products: Tensor) -> Tensor:
    """Returns the cosines (T, T) of vectors with these inner products (T, T)."""
    norms = products.diagonal().sqrt()
    return products / norms[:, None] / norms


class Projection:
    """A random map of vectors to `size` numbers that keeps inner products up to a small error.

    Every number of a vector is added, with a random sign, to one place of each of four parts (Kane
    & Nelson, *Sparser Johnson-Lindenstrauss Transforms*, 2014). The map follows from the seed and
    is drawn again for every vector, so that it takes no memory. A part alone is a projection too.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        assert size % PARTS == 0
        self.size, self.seed = size // PARTS, seed

    def __call__(self, pieces: Iterable[Tensor]) -> Tensor:
        """Returns the parts float64 (4, size / 4) of a vector that is given in pieces."""
        generator = torch.Generator().manual_seed(self.seed)
        projected = torch.zeros(PARTS, self.size, dtype=torch.float64)
        for piece in pieces:
            for chunk in piece.flatten().split(CHUNK):
                numbers = chunk.cpu().double()
                for part in projected:
                    drawn = torch.randint(2 * self.size, numbers.shape, generator=generator)
                    signs = 1 - 2 * (drawn % 2)
                    part.index_add_(0, drawn // 2, numbers * signs)
        return projected


def interpolated(affinity: Tensor, at: Tensor, tasks: int) -> Tensor:
    """Returns the cosines (tasks, tasks) of all tasks from those (m, m) of the tasks `at` (m,).

    Between two measured tasks the unit gradient is interpolated linearly in t, beyond the last ones
    it is theirs; cosines of these have a diagonal of one, and measured ones are kept.
    """
    t = torch.arange(tasks, dtype=affinity.dtype)
    right = torch.bucketize(t, at.to(t.dtype)).clamp(1, len(at) - 1)
    low, high = at[right - 1].to(t.dtype), at[right].to(t.dtype)
    share = ((t - low) / (high - low)).clamp(0, 1)
    weights = torch.zeros(tasks, len(at), dtype=affinity.dtype)
    weights[torch.arange(tasks), right - 1] = 1 - share
    weights[torch.arange(tasks), right] = share
    return cosines(weights @ affinity @ weights.T)
