"""Gradient rules: a subclass of Gradients is a choice of `--gradients` by its name."""

from dtr_lightning.gradients.base import (
    ClusterLoss,
    Gradients,
    Joint,
    NashMTL,
    PCGrad,
    PerCluster,
    Reduce,
)
from dtr_lightning.gradients.rules import gram, nash_weights, project_conflicts

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
