"""Metrics: what samples are compared by, and how far they are from real images."""

from dtr_lightning.metrics.class_scores import ClassifierScore, InceptionScore, inception_score
from dtr_lightning.metrics.classifiers import DigitsFeatures, MNISTFeatures
from dtr_lightning.metrics.copies import Copies
from dtr_lightning.metrics.dinov2 import DINOv2Features
from dtr_lightning.metrics.distances import FrechetDistance, KernelDistance, frechet_distance
from dtr_lightning.metrics.features import Features
from dtr_lightning.metrics.inception import InceptionFeatures
from dtr_lightning.metrics.precision import PrecisionRecall, precision_recall
from dtr_lightning.metrics.reservoir import BoundedRows
from dtr_lightning.metrics.scorer import Scorer
from dtr_lightning.metrics.timm_features import TimmFeatures

__all__ = [
    "BoundedRows",
    "ClassifierScore",
    "Copies",
    "DINOv2Features",
    "DigitsFeatures",
    "Features",
    "FrechetDistance",
    "InceptionFeatures",
    "InceptionScore",
    "KernelDistance",
    "MNISTFeatures",
    "PrecisionRecall",
    "Scorer",
    "TimmFeatures",
    "frechet_distance",
    "inception_score",
    "precision_recall",
]
