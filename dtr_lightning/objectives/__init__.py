"""Objectives: how the losses of single samples, or of clusters of tasks, become one step."""

__all__ = [
    "CUW",
    "P2",
    "UW",
    "ClusterLoss",
    "Constant",
    "Gradients",
    "Joint",
    "LossWeight",
    "MinSNR",
    "NashMTL",
    "PCGrad",
    "PerCluster",
    "Reduce",
    "gram",
    "nash_weights",
    "project_conflicts",
]

from dtr_lightning.objectives.gradient_rules import (
    ClusterLoss,
    Gradients,
    Joint,
    NashMTL,
    PCGrad,
    PerCluster,
    Reduce,
    gram,
    nash_weights,
    project_conflicts,
)
from dtr_lightning.objectives.loss_weights import P2, Constant, LossWeight, MinSNR
from dtr_lightning.objectives.uncertainty import CUW, UW
