"""Precision and recall of samples by their k nearest neighbours, in memory that N does not move."""

__all__ = ["PrecisionRecall", "precision_recall"]

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dtr_lightning.errors import UserError
from dtr_lightning.metrics.reservoir import BoundedRows

ROWS, COLUMNS = 1024, 4096  # of a block of distances: 32 MB, and 67 MB of 2,048 features


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Returns the shares of fakes (M, D) near the reals (N, D), and of reals near the fakes.

    Near a set is what lies in the ball of one of its points, as far as that point's k-th neighbour
    in the set, itself excluded (Kynkaanniemi et al. 2019, Eq. 1). Squared L2, float64, block by
    block. UserError where a side has no k-th neighbour.
    """
    if min(len(real), len(fake)) <= k:
        raise UserError(
            f"precision and recall with k = {k} need at least {k + 1} images on either side, "
            f"not {len(real)} real and {len(fake)} fake"
        )
    return inside(real, fake, radii(real, k), radii(fake, k))


def radii(features: Tensor, k: int) -> Tensor:
    """Returns the squared distance (N,) of features (N, D) to their k-th nearest other."""
    best = features.new_full((len(features), k + 1), torch.inf, dtype=torch.float64)
    for rows, columns, squares in _blocks(features, features):
        # a point is its own nearest at 0, which rounding must not turn into a second place
        own = torch.arange(rows.start, rows.stop, device=squares.device) - columns.start
        here = (own >= 0) & (own < squares.shape[1])
        squares[here, own[here]] = 0
        nearest = squares.topk(min(k + 1, squares.shape[1]), largest=False).values
        best[rows] = torch.cat([best[rows], nearest], 1).topk(k + 1, largest=False).values
    return best.amax(1)


def inside(
    real: Tensor, fake: Tensor, real_radii: Tensor, fake_radii: Tensor
) -> tuple[float, float]:
    """Returns precision and recall, given the squared radii (N,) and (M,) of both sides' balls."""
    good = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, columns, squares in _blocks(fake, real):
        good[rows] |= (squares <= real_radii[columns]).any(1)
        recalled[columns] |= (squares <= fake_radii[rows, None]).any(0)
    return good.double().mean().item(), recalled.double().mean().item()


def _blocks(a: Tensor, b: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yields rows of a, rows of b and their squared distances, float64."""
    for j in range(0, len(b), COLUMNS):
        columns = slice(j, min(j + COLUMNS, len(b)))
        other = b[columns].double()
        norms = other.square().sum(1)
        for i in range(0, len(a), ROWS):
            rows = slice(i, min(i + ROWS, len(a)))
            part = a[rows].double()
            squares = torch.addmm(norms, part, other.T, alpha=-2)
            yield rows, columns, squares.add_(part.square().sum(1, keepdim=True)).clamp_(min=0)


class PrecisionRecall(nn.Module):
    """Precision and recall (k = 3) of given features (N, D); `reset` keeps the real ones.

    Of either side 10,000 rows are kept, as many as ADM's reference batches hold.
    """

    k = 3

    def __init__(self) -> None:
        super().__init__()
        self.real, self.fake = BoundedRows(), BoundedRows()
        self.real_radii: Tensor | None = None

    def update(self, features: Tensor, real: bool, index: Tensor | None = None) -> None:
        """Takes features (N, D) of images with global indices (N,), by default the next ones."""
        (self.real if real else self.fake).update(features, index)
        if real:
            self.real_radii = None

    def compute(self) -> tuple[float | None, float | None]:
        """Returns precision and recall; None for sets without k-th neighbours."""
        real, fake = self.real.compute(), self.fake.compute()
        if min(len(real), len(fake)) <= self.k:
            return None, None
        if self.real_radii is None:
            self.real_radii = radii(real, self.k)
        return inside(real, fake, self.real_radii, radii(fake, self.k))

    def reset(self) -> None:
        """Forgets the fakes."""
        self.fake.reset()
