"""One run from its config to its results: train, resume, evaluate.

`run` is the only way a run is computed: by train.py, by a sweep's trial and from Python.
"""

__all__ = ["Progress", "Stopped", "read_checkpoint", "run", "seconds_per_step"]

import copy
import os
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from threading import Event
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from dtr_lightning.callbacks import (
    Checkpoints,
    EvaluateOnTheWay,
    JSONLLogger,
    Record,
)
from dtr_lightning.config import Config
from dtr_lightning.ema import EMA
from dtr_lightning.errors import Stopped, UserError
from dtr_lightning.experiment import Experiment
from dtr_lightning.naming import flatten
from dtr_lightning.pictures import image_grid, log_masks, save_samples
from dtr_lightning.progress import Progress, Reporter
from dtr_lightning.provenance import provenance
from dtr_lightning.run import Run

KEPT_SAMPLES = 100


def read_checkpoint(path: Path, module: nn.Module | None = None) -> dict[str, Any]:
    """Returns a checkpoint as tensors and plain values; UserError if it is anything else.

    Nothing in the file is ever executed (weights_only). With a module its weights must fit that.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights = {name: w.shape for name, w in content["state_dict"].items()}
        assert isinstance(content["global_step"], int)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: the run has no checkpoint yet") from None
    except Exception as error:  # torch raises half a dozen types for a bad file
        reason = (str(error).strip().splitlines() or ["unreadable"])[0][:160]
        raise UserError(
            f"checkpoint {path} is truncated or no plain checkpoint, and was not loaded "
            f"({reason}); remove it to start the run anew"
        ) from error
    if module and weights != {name: w.shape for name, w in module.state_dict().items()}:
        raise UserError(f"checkpoint {path} holds the weights of another network")
    return content


def run(
    config: Config,
    path: str | Path,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Event | None = None,
) -> dict[str, Any]:
    """Trains and evaluates the run at a path and returns its results.

    Done already: returns them at once. Interrupted before: goes on from last.ckpt. Raises Stopped
    when `stop` was set, at the end of the step or of an evaluation on the way, after saving
    last.ckpt; UserError if the directory holds another config or
    is in use.
    """
    directory = Run(path)
    leader = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0
    if leader:
        directory.check(config)
    if (results := directory.results) is not None:
        return results
    experiment = Experiment(config)  # a mistake in the config leaves no directory behind
    experiment.check()
    with directory.lock() if leader else nullcontext():
        if leader:
            directory.prepare(config)
        if (results := directory.results) is not None:
            return results
        stop = stop or Event()
        try:
            results = _train_and_evaluate(experiment, directory, leader, report, stop)
        except SystemExit as error:  # what Lightning makes of a second Ctrl-C
            if leader:
                directory.update_meta(status="stopped")
            raise (KeyboardInterrupt if stop.is_set() else error) from error
        except BaseException as error:
            if leader:
                status = "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
                trace = traceback.format_exc() if status == "failed" else None
                directory.update_meta(status=status, traceback=trace)
            raise
        if leader:
            directory.update_meta(status="done", finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
            directory.write_results(results)
        return results


def _train_and_evaluate(
    experiment: Experiment,
    directory: Run,
    leader: bool,
    report: Callable[[Progress], None],
    stop: Event,
) -> dict[str, Any]:
    config, module = experiment.config, experiment.module
    resumed = directory.last.exists()
    start = read_checkpoint(directory.last, module)["global_step"] if resumed else 0
    if leader:
        directory.update_meta(status="running", traceback=None, **provenance())
    reporter = Reporter(experiment, report)

    def stoppable(images: int) -> None:
        reporter.sampled(images)
        if stop.is_set():
            raise Stopped

    def evaluate_on_the_way(trainer: Trainer) -> dict[str, float]:
        n = experiment.protocol.every_n
        scores, images, _ = experiment.evaluate(
            trainer, ema.module, n, KEPT_SAMPLES, reporter.sampled
        )
        if leader:
            grid = image_grid(images, experiment.data.num_classes)
            tensorboard.experiment.add_image("samples", grid, trainer.global_step)
        losses = experiment.held_out(trainer, ema.module)
        reporter.tell(loss=losses["val/loss"], score=scores.get("score"))
        shown = ("score", "accuracy", "copies", "kid", "n")
        return losses | {f"eval/{k}": scores[k] for k in shown if scores[k] is not None}

    options = config["module"]
    ema = EMA(options["ema_decay"], options["ema_warmup"])
    tensorboard = TensorBoardLogger(
        directory.tensorboard, name="", version="", purge_step=start + 1 if start else 0
    )
    began, earlier = time.perf_counter(), directory.meta

    def seconds() -> float:
        return earlier.get("seconds", 0.0) + time.perf_counter() - began

    def saved(step: int) -> None:
        trained = time.perf_counter() - reporter.began - on_the_way.seconds
        directory.update_meta(
            seconds=seconds(),
            train_seconds=earlier.get("train_seconds", 0.0) + trained,
            timed_steps=earlier.get("timed_steps", 0) + step - start,
        )

    on_the_way = EvaluateOnTheWay(experiment.protocol.every, evaluate_on_the_way)
    callbacks = [
        ema,
        Record(config["trainer"]["log_every_n_steps"], directory),
        on_the_way,
        reporter,
        Checkpoints(directory, **config["checkpoint"], stop=stop, saved=saved),
    ]
    trainer = experiment.trainer([tensorboard, JSONLLogger(directory)], callbacks)
    if leader and not start:
        log_masks(tensorboard.experiment, module.model.router)

    trainer.fit(
        module,
        datamodule=experiment.data,
        ckpt_path=directory.last if start else None,
        weights_only=True,
    )
    checkpoint = read_checkpoint(directory.last)
    module.load_state_dict(checkpoint["state_dict"])
    module.to(trainer.strategy.root_device)
    reporter.tell(done=experiment.work(upto=trainer.max_steps), step=trainer.max_steps)
    scores, images, labels = experiment.evaluate(
        trainer, module, experiment.protocol.n, KEPT_SAMPLES, stoppable
    )
    losses = experiment.held_out(trainer, module)
    meta = directory.meta
    steps, train_seconds = meta.get("timed_steps"), meta.get("train_seconds")
    results = {
        **scores,
        "loss": losses["val/loss"],
        "seed": config["seed"],
        "steps": trainer.max_steps,
        "parameters": experiment.parameters(),
        "seconds": seconds(),
        "steps_per_second": steps / train_seconds if steps else None,
        "protocol": experiment.describe(),
    }
    if leader:
        save_samples(directory, images, labels, experiment.data.num_classes)
        hyperparameters = {k: v for k, v in flatten(config).items() if v is not None}
        final = {k: results[k] for k in ("score", "accuracy", "loss") if results[k] is not None}
        tensorboard.log_hyperparams(hyperparameters, metrics=final)
        tensorboard.finalize("success")
    return results


def seconds_per_step(config: Config, steps: int = 20) -> float:
    """Returns the measured duration of a training step, in seconds, of a config on this machine."""
    few = copy.deepcopy(config)
    few["trainer"]["max_steps"] = steps
    experiment = Experiment(few)
    times: list[float] = []
    clock = LambdaCallback(on_train_batch_end=lambda *_: times.append(time.perf_counter()))
    experiment.trainer([], [clock]).fit(experiment.module, datamodule=experiment.data)
    return (times[-1] - times[4]) / (len(times) - 5)
