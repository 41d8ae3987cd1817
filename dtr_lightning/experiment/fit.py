"""One run from its config to its results: train, resume, evaluate.

`run` is the only way a run is computed: by train.py, by a sweep's trial and from Python.
"""

__all__ = ["Progress", "Stopped", "read_checkpoint", "run", "seconds_per_step"]

import copy
import logging
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Event, Timer
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import Logger

from dtr_lightning.config.checks import seconds_of
from dtr_lightning.config.parser import Config, contents_of
from dtr_lightning.errors import Diverged, Stopped
from dtr_lightning.expect import is_own
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.experiment.experts import train_experts
from dtr_lightning.experiment.initial import refuse_imported, start_from_init
from dtr_lightning.experiment.notes import notes_of
from dtr_lightning.experiment.progress import Progress, Reporter
from dtr_lightning.rundir.provenance import provenance
from dtr_lightning.rundir.run import Run, finite
from dtr_lightning.training.callbacks import (
    Checkpoints,
    JSONLLogger,
    MetricLogger,
    PeriodicEvaluation,
)
from dtr_lightning.training.ema import EMA
from dtr_lightning.training.launch import CommonStop, is_leader
from dtr_lightning.training.loggers import log_results, opened_loggers
from dtr_lightning.training.module import DiffusionModule
from dtr_lightning.training.pictures import by_class, image_grid, log_masks, save_samples
from dtr_lightning.training.profile import Profile
from dtr_lightning.training.tensorboard import TensorBoard, log_end, log_start
from dtr_lightning.training.weights import are_finite, load_average, read_checkpoint, refuse_shorter

KEPT_SAMPLES = 100


def run(
    config: Config,
    path: str | Path,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Event | None = None,
) -> dict[str, Any]:
    """Trains and evaluates the run at a path, with its experts if any, and returns its results.

    Done already: returns them at once. Interrupted before: goes on from last.ckpt. Raises Stopped
    when `stop` was set, after saving last.ckpt: at the end of the step or in an evaluation, which a
    resumed run makes up for. Several processes stop together, when that of any was set.
    A training loss, or at the end a weight, held-out loss or score, that is not finite ends the run
    as diverged, with neither score nor loss. UserError if the directory holds another run, one that
    is trained for longer already, or is in use. A run that ended is trained on where max_steps is
    larger, and evaluated anew under another protocol.
    """
    directory, contents = Run(path), {}
    leader = is_leader(config["trainer"])
    if begun := directory.config_file.exists():
        contents = contents_of(config)
    if leader:
        directory.check(config, contents)
    if begun:
        if (results := directory.finished(config, contents)) is not None:
            return results
        refuse_imported(directory)
        refuse_shorter(directory, config["trainer"]["max_steps"])
    # a mistake in the config leaves no directory behind
    experiment = Experiment(config, directory.planned_steps)
    experiment.check()
    if not directory.last.exists():
        start_from_init(experiment)
    with directory.lock() if leader else nullcontext():
        if leader:
            contents = contents or contents_of(config, experiment.data)
            directory.prepare(config, contents, experiment.data.record())
            if experiment.protocol.n:  # an expert reads what its run has announced
                experiment.data.announce()
            known = {"smoke": directory.meta.get("smoke"), "protocol": experiment.describe()}
            known |= experiment.scoring() | experiment.facts()
            for note in notes_of(known).values():
                logging.getLogger(__name__).warning("note: %s", note)
        if (results := directory.finished(config, contents)) is not None:
            return results
        stop, status = stop or Event(), "done"
        try:
            with _stopping_after(config["trainer"].get("max_time"), stop, leader):
                results = _train_and_evaluate(experiment, directory, leader, report, stop)
        except Diverged as error:
            results, status = _diverged(experiment, directory, error), "diverged"
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
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            directory.update_meta(status=status, seconds=results["seconds"], finished=now)
            directory.write_results(results)
        return results


class _Running(NamedTuple):
    """A run in progress: what is trained, where it is kept, who hears of it and who may stop it."""

    experiment: Experiment
    directory: Run
    leader: bool
    reporter: Reporter
    stop: CommonStop
    loggers: list[Logger]  # beside TensorBoard and metrics.jsonl


def _train_and_evaluate(
    experiment: Experiment,
    directory: Run,
    leader: bool,
    report: Callable[[Progress], None],
    stop: Event,
) -> dict[str, Any]:
    config, experts = experiment.config, experiment.networks > 1
    if leader:
        directory.update_meta(status="running", traceback=None, **provenance())
    reporter = Reporter(experiment, report)
    if experts:
        times, diverged = train_experts(experiment, directory, run, report, stop)
        if leader:
            directory.update_meta(**times)
            directory.cut_metrics(0)
        if diverged:
            raise diverged
    names, parameters = config.get("logger", ()), experiment.parameters()
    with opened_loggers(names, directory, config, parameters, leader) as loggers:
        running = _Running(experiment, directory, leader, reporter, CommonStop(stop), loggers)
        tensorboard, trainer = _join_experts(running) if experts else _train(running)
        return _evaluate(running, tensorboard, trainer)


def _join_experts(running: _Running) -> tuple[TensorBoard, Trainer]:
    """Returns the trainer of experts that are trained: its devices and processes are started."""
    experiment, directory = running.experiment, running.directory
    tensorboard = _tensorboard(directory, 0)
    if running.leader:
        log_start(tensorboard.experiment, experiment.config, experiment.parameters())
    loggers = [tensorboard, JSONLLogger(directory), *running.loggers]
    trainer = experiment.trainer(loggers, [], running.stop.stop)
    trainer.fit(experiment.module, datamodule=experiment.data)  # no step
    return tensorboard, trainer


def _evaluate(running: _Running, tensorboard: TensorBoard, trainer: Trainer) -> dict[str, Any]:
    """Returns the results of a run that is trained; Diverged where one is not finite."""
    experiment, directory, leader, reporter, _, loggers = running
    config, module = experiment.config, experiment.module
    began, steps = time.perf_counter(), experiment.steps()
    load_average(directory, module)
    module.to(trainer.strategy.root_device)
    done = experiment.work(upto=config["trainer"]["max_steps"])
    reporter.tell(stage="evaluate", done=done, step=steps["steps"])
    scores: dict[str, Any] = {"tasks": list(module.diffusion.tasks)}
    if n := experiment.protocol.n:
        sampled = _stoppable(running, trainer, n)
        scores, images, labels = experiment.evaluate(trainer, module, n, KEPT_SAMPLES, sampled)
    losses = experiment.val_losses(trainer, module)
    scores |= {"loss": losses["val/loss"], **steps}
    if diverged := Diverged.of(scores):
        raise diverged
    results = _results(experiment, directory, scores, time.perf_counter() - began)
    if leader:
        names = experiment.data.class_names
        every, last = experiment.protocol.every, steps["steps"]
        new = experiment.networks > 1 or not every or last % every > 0  # not evaluated on the way
        if new:
            for logger in trainer.loggers:
                logger.log_metrics(losses, last)
        if n and new:
            grid = image_grid(by_class(images, labels, len(names)), len(names))
            tensorboard.experiment.add_image("samples", grid, last)
        if n:
            save_samples(directory, images, labels, names)
        log_end(tensorboard.experiment, results)
        log_results(loggers, results)
        tensorboard.finalize("success")
    return results


def _stoppable(running: _Running, trainer: Trainer, n: int) -> Callable[[int], None]:
    """Returns what counts the work of an evaluation of n samples; it raises Stopped if asked to.

    All processes must ask equally often: as often as one with the smallest share of the samples. A
    person's own sampler may report in another way: there several processes stop afterwards.
    """
    experiment, world = running.experiment, trainer.world_size
    batches = math.ceil(n // world / experiment.protocol.batch_size)
    questions = 0 if is_own(experiment.sampler) else batches * experiment.sampler_steps

    def sampled(images: int) -> None:
        nonlocal questions
        running.reporter.sampled(images)
        questions -= 1
        if (world == 1 or questions >= 0) and running.stop.ask(trainer):
            raise Stopped

    return sampled


def _train(running: _Running) -> tuple[TensorBoard, Trainer]:
    """Trains up to max_steps, from last.ckpt if there is one; Diverged, or Stopped once saved."""
    experiment, directory, leader, reporter, stop, more = running
    config, module = experiment.config, experiment.module
    resumed = directory.last.exists()
    start = read_checkpoint(directory.last, module)["global_step"] if resumed else 0
    options = config["module"]
    ema = EMA(options["ema_decay"], options["ema_warmup"])
    tensorboard = _tensorboard(directory, start)
    began, earlier = time.perf_counter(), directory.meta

    def saved(step: int) -> None:
        now = time.perf_counter()
        trained = now - reporter.began - on_the_way.seconds
        directory.update_meta(
            seconds=earlier.get("seconds", 0.0) + now - began,
            train_seconds=earlier.get("train_seconds", 0.0) + trained,
            timed_steps=earlier.get("timed_steps", 0) + step - start,
        )

    def evaluate(trainer: Trainer) -> dict[str, float]:
        return _evaluate_on_the_way(running, tensorboard, trainer, ema.module)

    on_the_way = PeriodicEvaluation(directory, experiment.protocol.every, evaluate)
    callbacks = [
        ema,
        MetricLogger(config["trainer"]["log_every_n_steps"], directory),
        on_the_way,
        reporter,
        Checkpoints(directory, **config["checkpoint"], stop=stop, saved=saved),
    ]
    if config["trainer"].get("profiler"):
        callbacks.append(Profile(directory.profile))
    loggers = [tensorboard, JSONLLogger(directory), *more]
    trainer = experiment.trainer(loggers, callbacks, stop.stop)
    if leader and not start:
        log_start(tensorboard.experiment, config, experiment.parameters())
        log_masks(tensorboard.experiment, module.model.router)
    try:
        trainer.fit(
            module,
            datamodule=experiment.data,
            ckpt_path=directory.last if start else None,
            weights_only=True,
        )
    except Diverged as error:
        if leader and error.step is not None:
            saved(error.step)  # its times alone: they count although no checkpoint is written
        raise
    on_the_way.make_up(trainer)  # that of the last step
    if not are_finite(directory, module):
        raise Diverged("the weights are not finite", config["trainer"]["max_steps"])
    return tensorboard, trainer


def _evaluate_on_the_way(
    running: _Running, tensorboard: TensorBoard, trainer: Trainer, module: DiffusionModule
) -> dict[str, float]:
    """Returns the scalars of an evaluation of the average weights, and shows its samples."""
    experiment, step = running.experiment, trainer.global_step
    losses, scores = experiment.val_losses(trainer, module), {}
    if experiment.protocol.n:
        n = experiment.protocol.every_n
        sampled = _stoppable(running, trainer, n)
        scores, images, labels = experiment.evaluate(trainer, module, n, KEPT_SAMPLES, sampled)
        if running.leader:
            classes = experiment.data.num_classes
            grid = image_grid(by_class(images, labels, classes), classes)
            tensorboard.experiment.add_image("samples", grid, step)
    running.reporter.tell(loss=losses["val/loss"], score=scores.get("score"), evaluated=step)
    shown = ("score", "accuracy", "copies", "kid", "n")
    return losses | {f"eval/{k}": scores[k] for k in shown if scores.get(k) is not None}


def _diverged(experiment: Experiment, directory: Run, how: Diverged) -> dict[str, Any]:
    """Returns the results of a run that diverged: null where there is no number."""
    name, n = experiment.features.name, experiment.protocol.n
    scores = {"score_name": name, "score": None, "n": n} if n else {}
    stated: dict[str, Any] = {"tasks": list(experiment.module.diffusion.tasks)}
    stated |= {"diverged": how.what, "diverged_at": how.step, "steps": how.step}
    return _results(experiment, directory, {**scores, "loss": None, **stated})


def _results(
    experiment: Experiment, directory: Run, scores: dict[str, Any], seconds: float = 0.0
) -> dict[str, Any]:
    """Returns what results.json holds: scores, what they cost, and how they were made."""
    meta = directory.meta
    timed, train_seconds = meta.get("timed_steps"), meta.get("train_seconds")
    results = {
        **experiment.scoring(),
        **scores,
        **experiment.facts(),
        "smoke": bool(meta.get("smoke")),
        "seed": experiment.config["seed"],
        "parameters": experiment.parameters(),
        "macs": experiment.macs(),
        "overlap": experiment.overlap(),
        "seconds": meta.get("seconds", 0.0) + seconds,
        "steps_per_second": timed / train_seconds if timed else None,
        **({"protocol": experiment.describe()} if experiment.protocol.n else {}),
    }
    return finite(results | {"notes": [*notes_of(results).values()]})


@contextmanager
def _stopping_after(max_time: str | None, stop: Event, leader: bool) -> Iterator[None]:
    """Sets `stop` when the time of a run is over."""
    if max_time is None:
        yield
        return

    def over() -> None:
        stop.set()
        if leader:
            print(f"\ntrainer.max_time {max_time} is over", file=sys.stderr, flush=True)

    timer = Timer(seconds_of(max_time), over)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _tensorboard(directory: Run, start: int) -> TensorBoard:
    return TensorBoard(
        directory.tensorboard, name="", version="", purge_step=start + 1 if start else 0
    )


def seconds_per_step(config: Config, steps: int = 20) -> float:
    """Returns the measured duration of a training step, in seconds, of a config on this machine."""
    few = copy.deepcopy(config)
    few["trainer"]["max_steps"], few["experts"] = steps, 1
    experiment = Experiment(few)
    times: list[float] = []
    clock = LambdaCallback(on_train_batch_end=lambda *_: times.append(time.perf_counter()))
    experiment.trainer([], [clock]).fit(experiment.module, datamodule=experiment.data)
    return (times[-1] - times[4]) / (len(times) - 5)
