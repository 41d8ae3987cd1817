"""A trained run for what measures its network."""

__all__ = ["load"]

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dtr_lightning.cli.commands import quiet
from dtr_lightning.rundir.run import Run

if TYPE_CHECKING:
    from dtr_lightning.experiment.load import TrainedRun


def load(run: Run, options: Sequence[str] = ()) -> "TrainedRun":
    """Returns a run with its average weights, not compiled; options are those of evaluate.py."""
    # Lightning takes seconds to import; figures that need no network do without.
    from dtr_lightning.experiment.load import TrainedRun, other_protocol

    quiet()
    config = other_protocol(run, options)
    return TrainedRun(run, config | {"module": config["module"] | {"compile": False}})
