"""What TensorBoard's HParams view shows of a run: its options, its results and its state."""

__all__ = ["log_end", "log_start"]

from collections.abc import Mapping
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from dtr_lightning.naming import settings

# The view opens with the first five metrics in the order of their names: capitals come first.
SHOWN = ("accuracy", "loss", "parameters", "score", "seconds")


def log_start(writer: SummaryWriter, config: Mapping[str, Any]) -> None:
    """Writes what a run computes by dotted option, before its first step: pruned runs have it too.

    SummaryWriter.add_hparams would also describe the experiment, and TensorBoard take one run's
    description for all: without any it compares the runs, and opens with what differs.
    """
    options = {
        key: value if isinstance(value, int | float | str) else str(value)
        for key, value in settings(config).items()
        if value is not None
    }
    _, start, _ = hparams(options, {})
    writer.file_writer.add_summary(start)


def log_end(writer: SummaryWriter, results: Mapping[str, Any]) -> None:
    """Writes a run's results, as `Results/score`, and that it succeeded."""
    for key in SHOWN:
        if results.get(key) is not None:
            writer.add_scalar(f"Results/{key}", results[key], results["steps"])
    _, _, end = hparams({}, {})
    writer.file_writer.add_summary(end)
