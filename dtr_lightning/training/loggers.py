"""Loggers that a person asks for beside TensorBoard and metrics.jsonl: wandb, csv, mlflow.

They are Lightning's own, show a run's options, scalars and results, and are no part of what the run
is. Where the run goes on, wandb and MLflow go on with what they have of it: its id is in meta.json.
"""

__all__ = ["LOGGERS", "check_loggers", "log_results", "opened_loggers"]

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger

from dtr_lightning.errors import UserError
from dtr_lightning.rundir.run import Run
from dtr_lightning.training.tensorboard import final_scalars, hyperparameters

LOGGERS = {"wandb": "wandb", "csv": None, "mlflow": "mlflow"}  # the package of each
PROJECT = "dtr_lightning"


def check_loggers(names: Sequence[str]) -> None:
    """Raises UserError for a logger whose package is not installed."""
    for name in names:
        if (package := LOGGERS[name]) and find_spec(package) is None:
            raise UserError(
                f"--logger {name} needs a package that is not here: pip install {package}"
            )


@contextmanager
def opened_loggers(
    names: Sequence[str], directory: Run, config: Mapping[str, Any], parameters: int, leader: bool
) -> Iterator[list[Logger]]:
    """Yields the loggers of a run and closes them; UserError for one that cannot begin.

    Options are logged where a logger sees the run for the first time.
    """
    known = directory.meta.get("loggers", {})
    loggers = [_make(name, directory, known.get(name)) for name in names]
    if leader:
        for name, logger in zip(names, loggers, strict=True):
            try:
                begun = logger.version if logger.experiment else None
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                hint = "; WANDB_MODE=offline needs no account" if name == "wandb" else ""
                raise UserError(f"--logger {name} cannot begin: {reason}{hint}") from error
            if name == "csv" or begun != known.get(name):
                logger.log_hyperparams(hyperparameters(config, parameters))
            if name != "csv":
                known = known | {name: begun}
        if known != directory.meta.get("loggers", {}):
            directory.update_meta(loggers=known)
    try:
        yield loggers
    finally:
        for logger in loggers if leader else ():
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()
            else:
                logger.save()


def _make(name: str, directory: Run, known: str | None) -> Logger:
    """Returns a logger that writes into the run, or goes on with what it has `known` as."""
    folder = directory.loggers / name
    if name == "csv":  # Lightning's deletes what an earlier start wrote: a folder for each
        return CSVLogger(directory.path, name=str(folder.relative_to(directory.path)))
    if name == "mlflow":
        server = os.environ.get("MLFLOW_TRACKING_URI")
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        folder.mkdir(parents=True, exist_ok=True)
        place = server or f"sqlite:///{folder.resolve()}/mlflow.db"
        return MLFlowLogger(project, directory.path.name, place, run_id=known)
    folder.parent.mkdir(exist_ok=True)
    return WandbLogger(
        name=directory.path.name,
        save_dir=folder.parent,
        id=known,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        resume="allow",
        settings={"console": "off"},
    )


def log_results(loggers: Sequence[Logger], results: Mapping[str, Any]) -> None:
    """Logs a run's results as `Results/score` and so on."""
    for logger in loggers:
        logger.log_metrics(final_scalars(results), results["steps"])
