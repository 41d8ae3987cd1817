"""What a config may say: values out of range are told before anything is made of them."""

__all__ = ["check", "expert_configs", "seconds_of"]

import copy
import math
import re
from typing import Any

from dtr_lightning.config.evaluation import LARGEST_SEED, EvaluationConfig
from dtr_lightning.config.registry import instantiate
from dtr_lightning.diffusion import Process, clusters
from dtr_lightning.diffusion.samplers import Sampler
from dtr_lightning.errors import UserError, choices
from dtr_lightning.objectives import Gradients, LossWeight
from dtr_lightning.routing import Router
from dtr_lightning.rundir.naming import flatten
from dtr_lightning.training.loggers import LOGGERS

Config = dict[str, Any]

# others share out the network, which has an average, or fork a process that has threads
STRATEGIES = ("auto", "ddp", *(f"ddp_find_unused_parameters_{x}" for x in ("false", "true")))
PRECISIONS = ("32-true", "bf16-mixed")
DAY = 86_400  # seconds
MOST_DAYS = 9_999  # of max_time: a timer cannot wait for ever


def check(config: Config) -> None:
    """Raises UserError for values out of range on the axes that are cheap to make."""
    process: Process = instantiate(Process, config["diffusion"])
    seed, steps = config["seed"], config["trainer"]["max_steps"]
    instantiate(Router, config["router"], seed=seed, steps=steps)
    loss_weight: LossWeight = instantiate(LossWeight, config["loss_weight"])
    loss_weight.bind(process)
    gradients: Gradients = instantiate(Gradients, config["gradients"], seed=seed)
    gradients.bind(process.log_snr(), process.tasks)
    accumulate = config["trainer"].get("accumulate_grad_batches", 1)
    if accumulate != 1 and not gradients.joint:
        raise UserError(
            f"{type(gradients).__name__} needs the gradients of a whole batch at once: "
            "trainer.accumulate_grad_batches must be 1"
        )
    if batch_size := (config["data"]["init_args"] or {}).get("batch_size"):
        loss_weight.check(batch_size)
        gradients.check(batch_size)
    sampler: Sampler = instantiate(Sampler, config["sampler"])
    sampler.check(process)
    sampler.evaluations(process)
    EvaluationConfig(**config["evaluation"])
    if (clip := config["trainer"]["gradient_clip_val"]) is not None and not clip > 0:
        raise UserError(f"trainer.gradient_clip_val must be positive; got {clip}")
    if (precision := str(config["trainer"]["precision"] or "32-true")) not in PRECISIONS:
        raise choices("trainer.precision", precision, PRECISIONS)
    if (strategy := config["trainer"]["strategy"]) not in STRATEGIES:
        raise choices("trainer.strategy", strategy, STRATEGIES)
    if (nodes := config["trainer"]["num_nodes"]) < 1:
        raise UserError(f"trainer.num_nodes must be at least 1; got {nodes}")
    if max_time := config["trainer"].get("max_time"):
        seconds_of(max_time)
    for i, name in enumerate(loggers := config.get("logger", ())):
        if name not in LOGGERS:
            raise choices("logger", name, LOGGERS)
        if name in loggers[:i]:
            raise UserError(f"logger {name} is given twice; once is enough")
    if "init_partial" in config and "init" not in config:
        raise UserError("init_partial belongs to --init, the weights to start from; give that too")
    if steps < 1:
        raise UserError(f"trainer.max_steps must be at least 1; got {steps}")
    if config["evaluation"]["n"] == 0 and process.tasks == (0, process.T):
        raise UserError("evaluation.n must be at least 2; 0 is for an expert, a part of the tasks")
    for expert in expert_configs(config):
        low, high = expert["diffusion"]["init_args"]["tasks"]
        try:
            check(expert)
        except UserError as error:
            raise UserError(f"expert [{low}, {high}]: {error}") from error
    flat = flatten(config)
    for key, value in flat.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{key} must be a finite number; got {number}")
    bounds = {"seed": 0, "trainer.log_every_n_steps": 1, "checkpoint.every": 1}
    bounds |= {"trainer.accumulate_grad_batches": 1}
    for key, least in (bounds | {"checkpoint.milestones": 0}).items():
        if (value := flat[key]) is None or value < least:
            raise UserError(f"{key} must be at least {least}; got {value}")
    if seed > LARGEST_SEED:
        raise UserError(f"seed must be at most {LARGEST_SEED}; got {seed}")


def seconds_of(max_time: str) -> int:
    """Returns the seconds of DAYS:HOURS:MINUTES:SECONDS; UserError for another text."""
    parts = re.fullmatch(r"(\d{1,9}):(\d{1,9}):(\d{1,9}):(\d{1,9})", max_time)
    seconds = 0
    for value, unit in zip(parts.groups() if parts else (), (DAY, 3600, 60, 1), strict=False):
        seconds += int(value) * unit
    if not 1 <= seconds <= MOST_DAYS * DAY:
        raise UserError(
            "trainer.max_time must be DAYS:HOURS:MINUTES:SECONDS, such as 00:11:30:00, from one "
            f"second to {MOST_DAYS:,} days; got {max_time[:60]!r}"
        )
    return seconds


def expert_configs(config: Config) -> list[Config]:
    """Returns the configs of a run's experts, none for an ordinary run (Appendix D).

    Each is of a run on a range of the tasks, with the run's own seed, that is never sampled from.
    """
    if config["experts"] == 1:
        return []
    process: Process = instantiate(Process, config["diffusion"])
    ranges = clusters.ranges(process.T, config["experts"])
    if len(ranges) == 1:
        return []
    if process.tasks != (0, process.T):
        raise UserError("experts divide all tasks: leave out diffusion.tasks, or use experts 1")
    configs = [copy.deepcopy(config) | {"experts": 1} for _ in ranges]
    for expert, interval in zip(configs, ranges, strict=True):
        expert["diffusion"].setdefault("init_args", {})["tasks"] = list(interval)
        expert["evaluation"]["n"] = 0
    return configs
