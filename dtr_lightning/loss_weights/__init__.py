"""Loss weights."""

from dtr_lightning.loss_weights.base import Constant, LossWeight
from dtr_lightning.loss_weights.snr import P2, MinSNR
from dtr_lightning.loss_weights.uncertainty import CUW, UW

__all__ = ["CUW", "P2", "UW", "Constant", "LossWeight", "MinSNR"]
