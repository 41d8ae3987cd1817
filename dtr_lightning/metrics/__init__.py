"""Metrics: what samples are compared by, and how far they are from real images."""

from dtr_lightning.metrics.copies import Copies
from dtr_lightning.metrics.digits import DigitsFeatures
from dtr_lightning.metrics.distances import FrechetDistance, KernelDistance, frechet_distance
from dtr_lightning.metrics.features import Features, InceptionFeatures, TimmFeatures
from dtr_lightning.metrics.scores import Scorer

__all__ = [
    "Copies",
    "DigitsFeatures",
    "Features",
    "FrechetDistance",
    "InceptionFeatures",
    "KernelDistance",
    "Scorer",
    "TimmFeatures",
    "frechet_distance",
]
