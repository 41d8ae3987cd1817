"""Which samples copy a training image: a score alone is fooled by copies, they beat real images.

Of more than 50,000 training images that many are looked through: copies of others are not seen.
"""

__all__ = ["TRAIN", "Copies", "nearest", "thumbnails"]

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 32
TRAIN = 50_000  # training images whose thumbnails are kept: 154 MB in colour
QUANTILE = 0.01
CHUNK = 8192


def thumbnails(images: Tensor) -> Tensor:
    """Returns uint8 images (N, C, H, W) as rows (N, D), averaged to 32 pixels a side at most."""
    side = [min(SIDE, length) for length in images.shape[-2:]]
    if images.shape[-2:] != tuple(side):
        images = F.interpolate(images.float(), side, mode="area").round_().to(torch.uint8)
    return images.flatten(1)


def nearest(rows: Tensor, references: Tensor) -> Tensor:
    """Returns the L2 distance in grey levels (N,) of uint8 rows (N, D) to their nearest reference.

    References uint8 (M, D) are taken in chunks, so memory does not grow with M.
    """
    best = torch.full((len(rows),), torch.inf, device=rows.device)
    for i, part in enumerate(rows.split(CHUNK)):
        part = part.float().sub_(127.5)  # centred: the squares cancel less
        mine = best[i * CHUNK : (i + 1) * CHUNK]
        for chunk in references.split(CHUNK):
            other = chunk.to(part.device).float().sub_(127.5)
            squares = other.square().sum(1) - 2 * part @ other.T  # (N, M)
            torch.minimum(mine, squares.amin(1) + part.square().sum(1), out=mine)
    return best.clamp_(min=0).sqrt_()


class Copies:
    """Reads a sample as a copy where its nearest training image is nearer than for real images.

    The threshold is the first percentile of the distances of held-out images to their nearest
    training image: unseen real images are called copies with a share of about 0.01. One that is
    known already needs no held-out images.
    """

    def __init__(self, train: Tensor, val: Tensor, threshold: Tensor | None = None) -> None:
        self.train = train
        if threshold is None:
            threshold = nearest(val, train).quantile(QUANTILE)
        self.threshold = threshold

    def __call__(self, rows: Tensor) -> Tensor:
        """Returns bool (N,): which thumbnails (N, D) copy a training image."""
        return nearest(rows, self.train) <= self.threshold
