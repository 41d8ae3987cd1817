"""Another name of `dtr_lightning.routing.masks`."""

from dtr_lightning.routing.masks import *  # noqa: F403
from dtr_lightning.routing.masks import __all__ as __all__
