"""Another name of the loss weights in `dtr_lightning.objectives`."""

from dtr_lightning.objectives.loss_weights import *  # noqa: F403
from dtr_lightning.objectives.loss_weights import __all__ as __all__
