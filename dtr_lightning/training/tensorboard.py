"""What TensorBoard shows of a run: curves, and in HParams its options, results and state."""

__all__ = ["TensorBoard", "final_scalars", "hyperparameters", "log_end", "log_start"]

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from dtr_lightning.rundir.naming import settings

# The view opens with the first five metrics in the order of their names: capitals come first.
SHOWN = ("accuracy", "copies", "loss", "score", "seconds")
CONSTANT = ("eval/n",)  # in the record, and no curve


class TensorBoard(TensorBoardLogger):
    """Writes curves of what varies, and no file of its own beside the events."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Writes scalars of a step."""
        super().log_metrics({k: v for k, v in metrics.items() if k not in CONSTANT}, step)

    def save(self) -> None:
        """Flushes the events: config.yaml has the options already."""
        self.experiment.flush()


def log_start(writer: SummaryWriter, config: Mapping[str, Any], parameters: int) -> None:
    """Writes what a run computes by dotted option, before its first step: pruned runs have it too.

    And the number of its parameters, which is no curve. SummaryWriter.add_hparams would also
    describe the experiment, and TensorBoard take one run's description for all: without any it
    compares the runs, and opens with what differs.
    """
    _, start, _ = hparams(hyperparameters(config, parameters), {})
    writer.file_writer.add_summary(start)  # type: ignore[attr-defined]  # torch says None


def hyperparameters(config: Mapping[str, Any], parameters: int) -> dict[str, Any]:
    """Returns what a run computes by dotted option, as numbers and texts, and its parameters."""
    options = {
        key: value if isinstance(value, int | float | str) else str(value)
        for key, value in settings(config).items()
        if value is not None
    }
    return options | {"parameters": parameters}


def final_scalars(results: Mapping[str, Any]) -> dict[str, float]:
    """Returns the results that are shown, as `Results/score`."""
    return {f"Results/{key}": results[key] for key in SHOWN if results.get(key) is not None}


def log_end(writer: SummaryWriter, results: Mapping[str, Any]) -> None:
    """Writes a run's results, as `Results/score`, and that it succeeded."""
    for name, value in final_scalars(results).items():
        writer.add_scalar(name, value, results["steps"])
    _, _, end = hparams({}, {})
    writer.file_writer.add_summary(end)  # type: ignore[attr-defined]  # torch says None
