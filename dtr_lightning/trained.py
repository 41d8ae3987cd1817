"""A trained run, ready to be sampled from or evaluated under another protocol."""

__all__ = ["TrainedRun", "other_protocol", "same_protocol"]

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch

from dtr_lightning.config import Config, make_parser, parse
from dtr_lightning.errors import UserError
from dtr_lightning.evaluation import Report, silent
from dtr_lightning.experiment import Experiment
from dtr_lightning.fit import KEPT_SAMPLES
from dtr_lightning.naming import flatten
from dtr_lightning.run import Run
from dtr_lightning.weights import load_average

PROTOCOL = ("sampler", "features", "evaluation", "trainer.accelerator")


def other_protocol(run: Run, options: Sequence[str]) -> Config:
    """Returns the run's config with another sampler, features or evaluation.

    UserError for any other option: what was trained cannot be changed.
    """
    for option in options:
        if option.startswith("--") and not option[2:].startswith(PROTOCOL):
            name = option[2:].partition("=")[0]
            near = [key for key in flatten(run.config) if key.endswith(f".{name}")]
            near = [key for key in near if key.startswith(PROTOCOL)]
            hint = f" (did you mean --{near[0]}?)" if near else ""
            raise UserError(
                f"{option} is no option here{hint}; valid: --checkpoint, --sampler, --features and "
                "--evaluation with what belongs to them, --trainer.accelerator"
            )
    parser = make_parser()
    config = parse(parser, [f"--config={run.config_file}", *options]).config
    return config


def same_protocol(a: Config, b: Config) -> bool:
    """Returns whether two configs are scored alike at the end."""
    ignored = ("evaluation.every", "evaluation.batch_size", "trainer.accelerator")
    a, b = ({k: v for k, v in flatten(c).items() if not k.startswith(ignored)} for c in (a, b))
    return a == b


class TrainedRun:
    """The network of a run, or its experts, with average weights, on one device.

    checkpoint is "last", or "step=N" where a milestone was kept (by every expert).
    """

    def __init__(self, run: Run, config: Config, checkpoint: str = "last") -> None:
        trainer = config["trainer"] | {"devices": 1, "num_nodes": 1, "strategy": "auto"}
        self.experiment = Experiment(config | {"trainer": trainer})
        self.trainer = self.experiment.trainer([], [])
        self.module = self.experiment.module
        process = self.module.diffusion
        if process.tasks != (0, process.T):
            low, high = process.tasks
            raise UserError(
                f"{run.path} is an expert for [{low}, {high}): alone it cannot draw images"
            )
        self.run, self.step = run, load_average(run, self.module, checkpoint)
        self.module.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.trainer.strategy.root_device

    @property
    def name(self) -> str:
        """The name of an evaluation: what identifies its protocol and the step."""
        protocol = self.experiment.describe()
        text = json.dumps([protocol, self.step], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:6]
        sampler = f"{protocol['sampler'].lower()}{self.experiment.sampler_steps}"
        guidance, n = protocol["guidance"], protocol["n"]
        return f"step={self.step}-{sampler}-guidance={guidance:g}-n={n}-{digest}"

    def evaluate(self, report: Report = silent) -> dict[str, Any]:
        """Returns the results under the config's protocol, and stores them with the run."""
        if (stored := self.run.evaluation(self.name)) is not None:
            return stored
        n = self.experiment.protocol.n
        scores, *_ = self.experiment.evaluate(self.trainer, self.module, n, KEPT_SAMPLES, report)
        steps = self.experiment.steps(self.step)
        results = {**scores, **steps, "protocol": dict(self.experiment.describe())}
        self.run.write_evaluation(self.name, results)
        return results
