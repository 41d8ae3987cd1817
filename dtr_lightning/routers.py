"""Another name of `dtr_lightning.routing`."""

from dtr_lightning.routing import *  # noqa: F403
from dtr_lightning.routing import __all__ as __all__
