"""The ADM protocol (Dhariwal and Nichol 2021): FID, sFID, IS, precision and recall by Inception.

As its evaluator has them: statistics in a reference file override its images, which then serve
precision and recall alone; sFID in 2,023 spatial features; the inception score without the bias, in
splits of 5,000 in file order; k = 3 neighbours by squared L2. Features are summed in float64, image
by image: only precision and recall need rows, of at most 50,000 samples and 10,000 references.
"""

__all__ = ["SAMPLES", "Activations", "check_size", "protocol", "scores"]

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtr_lightning.errors import UserError
from dtr_lightning.metrics.class_scores import InceptionScore
from dtr_lightning.metrics.distances import FrechetDistance, frechet_distance
from dtr_lightning.metrics.features import rgb
from dtr_lightning.metrics.inception import InceptionFeatures
from dtr_lightning.metrics.npz import Archive
from dtr_lightning.metrics.precision import precision_recall
from dtr_lightning.metrics.reservoir import LIMIT, BoundedRows

SAMPLES = 50_000  # of which precision and recall are; their features take 410 MB
SPLIT = 5000
BATCH = 64


class Activations:
    """What Inception says of one set of images: sums, and pool_3 of at most `rows` images.

    A network without `logits` has no inception score.
    """

    def __init__(
        self, network: InceptionFeatures, device: torch.device | str = "cpu", rows: int = LIMIT
    ) -> None:
        self.network, self.device = network.to(device), torch.device(device)
        self.pool = FrechetDistance(network.num_features).to(device)
        self.spatial = FrechetDistance(network.num_spatial).to(device)
        self.score = InceptionScore(SPLIT) if hasattr(network, "logits") else None
        self.rows = BoundedRows(rows)
        self.n = 0

    @torch.no_grad()
    def update(self, images: Tensor) -> None:
        """Takes images uint8 (N, 1 or 3, H, W)."""
        with torch.autocast(self.device.type, enabled=False):
            pool, spatial = self.network.activations(rgb(images.to(self.device)))
        self.pool.update(pool, real=True)
        self.spatial.update(spatial, real=True)
        if self.score:
            self.score.update(self.network.logits(pool))
        self.rows.update(pool)
        self.n += len(images)

    def extend(self, batches: Iterable[Tensor], count: Callable[[int], None]) -> "Activations":
        """Takes all batches, and tells the number of images of each."""
        for images in batches:
            self.update(images)
            count(len(images))
        return self

    def statistics(self) -> dict[str, Tensor]:
        """Returns mu (2048,), sigma (2048, 2048), mu_s (2023,) and sigma_s, float64."""
        mu, sigma = self.pool.moments(real=True)
        mu_s, sigma_s = self.spatial.moments(real=True)
        return {"mu": mu, "sigma": sigma, "mu_s": mu_s, "sigma_s": sigma_s}


def scores(
    samples: Activations, reference: Archive, count: Callable[[int], None] = lambda n: None
) -> dict[str, Any]:
    """Returns the ADM scores of samples; None for what the reference file does not allow.

    Only with Inception's own weights are they called fid, sfid and inception_score. `count` hears
    how many images of the reference were read.
    """
    network, device = samples.network, samples.device
    stored = {key: value.to(device) for key, value in reference.statistics().items()}
    images = reference.batches(BATCH, LIMIT if stored else None) if reference.n else ()
    near = Activations(network, device).extend(images, count)
    theirs, ours = stored or near.statistics(), samples.statistics()
    precision = recall = None
    if near.n:
        precision, recall = precision_recall(near.rows.compute(), samples.rows.compute())
    known = network.name == "fid"
    names = ("fid", "sfid", "inception_score") if known else _others(network.name)
    values = (
        _distance(ours, theirs, "mu", "sigma"),
        _distance(ours, theirs, "mu_s", "sigma_s"),
        samples.score.compute()[0] if samples.score else None,
    )
    return {
        **dict(zip(names, values, strict=True)),
        "precision": precision,
        "recall": recall,
        "n": samples.n,
    }


def _others(name: str) -> tuple[str, str, str]:
    return name, f"s{name}", "classifier_score"


def _distance(a: dict[str, Tensor], b: dict[str, Tensor], mu: str, sigma: str) -> float | None:
    if mu not in b:
        return None
    return frechet_distance(a[mu], a[sigma], b[mu], b[sigma]).item()


def protocol(network: InceptionFeatures, reference: Archive) -> dict[str, Any]:
    """Returns what must be equal where ADM scores are compared."""
    return {
        "protocol": "adm",
        "reference": Path(reference.path).name,
        "reference_crc": reference.digest,
        "reference_statistics": "stored" if reference.statistics_keys else "of its images",
        "reference_images": min(reference.n, LIMIT),
        "inception_score_split": SPLIT,
        "k": 3,
        "precision_recall_samples": f"at most {SAMPLES}",
        **network.describe(),
    }


def check_size(shape: tuple[int, int, int], reference: Archive) -> None:
    """Raises UserError for samples (C, H, W) of another size than the reference's images."""
    if reference.n and shape[1:] != reference.shape[1:]:
        ours, theirs = ("x".join(map(str, s[1:])) for s in (shape, reference.shape))
        raise UserError(
            f"the samples are {ours} pixels and the images of {reference.path} {theirs}; give a "
            "reference of the samples' size"
        )
