"""From YAML files and dotted options to one plain, resolved config: the signatures are the schema.

jsonargparse reads the constructor signatures. Each axis of an experiment is a choice among the
subclasses of one base class, by name or by the import path of a person's own class.
"""

__all__ = [
    "AXES",
    "Config",
    "Parser",
    "build",
    "expert_configs",
    "make_parser",
    "parse",
    "resolve",
    "run_name",
    "valid_choices",
]

import copy
import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

from dtr_lightning import tasks
from dtr_lightning.data import Data
from dtr_lightning.diffusion import Process
from dtr_lightning.errors import UserError, choices
from dtr_lightning.evaluation import Protocol
from dtr_lightning.gradients import Gradients
from dtr_lightning.loss_weights import LossWeight
from dtr_lightning.metrics import Features
from dtr_lightning.mistakes import explain
from dtr_lightning.models import Denoiser
from dtr_lightning.module import DiffusionModule
from dtr_lightning.naming import flatten, slug
from dtr_lightning.recipes import expand
from dtr_lightning.routers import Router
from dtr_lightning.samplers import Sampler

Config = dict[str, Any]

# Of the images and of the network's output, under the names of DiT and of guided-diffusion.
SIZES = {"input_size", "image_size", "in_channels", "out_channels", "num_classes", "learn_sigma"}
# An axis, its base class, and the arguments that follow from other axes.
AXES: dict[str, tuple[type, set[str]]] = {
    "data": (Data, set()),
    "model": (Denoiser, SIZES | {"router", "null_text"}),
    "router": (Router, {"tasks", "seed", "steps"}),
    "diffusion": (Process, set()),
    "loss_weight": (LossWeight, set()),
    "gradients": (Gradients, {"seed"}),
    "sampler": (Sampler, set()),
    "features": (Features, set()),
}
DEFAULTS = {
    "router": "NoRouting",
    "diffusion": "Diffusion",
    "loss_weight": "Constant",
    "gradients": "Joint",
    "sampler": "DDPM",
}
TRAINER_OPTIONS = {
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "precision",
    "max_steps",
    "gradient_clip_val",
    "log_every_n_steps",
    "deterministic",
    "benchmark",
}
PRECISIONS = ("32-true", "bf16-mixed")


class Parser(ArgumentParser):
    """An ArgumentParser whose errors are UserErrors of one line with the valid choices."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Raises UserError; the parsers of the classes on an axis come here too."""
        hidden = ("help", "config", "print_config")
        options = [a.dest for a in self._actions if not a.dest.endswith(hidden)]
        raise UserError(explain(message, options, _names())) from ex


def _names() -> dict[str, list[str]]:
    return {axis: list(valid_choices(base)) for axis, (base, _) in AXES.items()}


def make_parser(description: str | None = None) -> Parser:
    """Returns the parser of a run's config."""
    parser = Parser(description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file; later options override it")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches, tasks and noise")
    parser.add_argument(
        "--experts",
        type=int | list[tuple[int, int]],
        default=1,
        help="networks for as many equal ranges of the tasks, or for these [low, high] (App. D)",
    )
    for axis, (base, linked) in AXES.items():
        parser.add_subclass_arguments(base, axis, skip=linked, required=True)
    linked = {"model", "diffusion", "loss_weight", "gradients", "captions", "seed"}
    parser.add_class_arguments(DiffusionModule, "module", skip=linked)
    parser.add_class_arguments(Protocol, "evaluation")
    parser.add_argument("--checkpoint.every", type=int, default=1000, help="steps, of last.ckpt")
    parser.add_argument(
        "--checkpoint.milestones", type=int, default=0, help="steps, of those kept; 0: none"
    )
    others = set(inspect.signature(Trainer).parameters) - TRAINER_OPTIONS
    parser.add_class_arguments(Trainer, "trainer", skip=others)
    parser.set_defaults(DEFAULTS | {"trainer.max_steps": 400_000, "trainer.log_every_n_steps": 50})
    return parser


class Parsed(NamedTuple):
    """A resolved config, the --out that a command may have, and the YAML files it was read from."""

    config: Config
    out: str | None
    files: list[str]


def parse(parser: Parser, arguments: Sequence[str]) -> Parsed:
    """Returns the resolved config of command-line arguments; UserError on anything wrong."""
    expanded, files = expand(arguments)
    namespace = parser.parse_args(expanded)
    namespace.pop("config", None)
    out = namespace.pop("out", None)
    config = yaml.safe_load(parser.dump(namespace, skip_none=False, skip_validation=True))
    _shorten(config)
    check(config)
    return Parsed(config, out, files)


def resolve(file: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Returns the resolved config of a YAML file with overrides by dotted option.

    For instance resolve("configs/digits.yaml", {"router": "DTR", "router.alpha": 4}).
    """
    arguments = [f"--config={file}"]
    for key, value in (overrides or {}).items():
        arguments.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
    return parse(make_parser(), arguments).config


def check(config: Config) -> None:
    """Raises UserError for values out of range on the axes that are cheap to make."""
    process: Process = build(Process, config["diffusion"])
    seed, steps = config["seed"], config["trainer"]["max_steps"]
    build(Router, config["router"], tasks=process.T, seed=seed, steps=steps)
    build(LossWeight, config["loss_weight"]).build(process)
    build(Gradients, config["gradients"], seed=seed).build(process.log_snr(), process.tasks)
    sampler: Sampler = build(Sampler, config["sampler"])
    sampler.check(process)
    sampler.evaluations(process)
    Protocol(**config["evaluation"])
    if (clip := config["trainer"]["gradient_clip_val"]) is not None and not clip > 0:
        raise UserError(f"trainer.gradient_clip_val must be positive; got {clip}")
    if (precision := str(config["trainer"]["precision"] or "32-true")) not in PRECISIONS:
        raise choices("trainer.precision", precision, PRECISIONS)
    if steps < 1:
        raise UserError(f"trainer.max_steps must be at least 1; got {steps}")
    if config["evaluation"]["n"] == 0 and process.tasks == (0, process.T):
        raise UserError("evaluation.n must be at least 2; 0 is for an expert, a part of the tasks")
    for expert in expert_configs(config):
        check(expert)
    bounds = {"seed": 0, "trainer.log_every_n_steps": 1, "checkpoint.every": 1}
    for key, least in (bounds | {"checkpoint.milestones": 0}).items():
        if (value := flatten(config)[key]) is None or value < least:
            raise UserError(f"{key} must be at least {least}; got {value}")


def expert_configs(config: Config) -> list[Config]:
    """Returns the configs of a run's experts, none for an ordinary run (Appendix D).

    Each is of a run on a range of the tasks, with the run's own seed, that is never sampled from.
    """
    process: Process = build(Process, config["diffusion"])
    ranges = tasks.ranges(process.T, config["experts"])
    if len(ranges) == 1:
        return []
    if process.tasks != (0, process.T):
        raise UserError("experts divide all tasks: leave out diffusion.tasks, or use experts 1")
    configs = [copy.deepcopy(config) | {"experts": 1} for _ in ranges]
    for expert, interval in zip(configs, ranges, strict=True):
        expert["diffusion"].setdefault("init_args", {})["tasks"] = list(interval)
        expert["evaluation"]["n"] = 0
    return configs


def run_name(config: Config, file: str | Path, overrides: Mapping[str, Any] | None = None) -> str:
    """Returns the directory name of a run: what differs from its recipe, the seed and a hash.

    The recipe is a YAML file, with overrides, and with the run's own choice on every axis.
    """
    chosen = {axis: config[axis]["class_path"] for axis in AXES}
    return slug(config, resolve(file, {**(overrides or {}), **chosen}))


def valid_choices(base: type) -> dict[str, type]:
    """Returns the classes that can be chosen on an axis by their name."""
    found: dict[str, type] = {}
    for subclass in base.__subclasses__():
        if not inspect.isabstract(subclass):
            found[subclass.__name__] = subclass
        found |= valid_choices(subclass)
    return dict(sorted(found.items()))


def build(base: type, choice: Mapping[str, Any], **linked: Any) -> Any:
    """Returns the object of a choice {class_path, init_args}, with the linked ones it takes."""
    path = choice["class_path"]
    if "." in path:
        module, _, name = path.rpartition(".")
        cls = getattr(importlib.import_module(module), name)
    else:
        cls = valid_choices(base)[path]
    linked = {key: value for key, value in linked.items() if key in _arguments(cls)}
    return cls(**(choice.get("init_args") or {}), **linked)


def _arguments(cls: type) -> set[str]:
    """Returns the names of a constructor's arguments, and of its bases' where it has **kwargs."""
    names: set[str] = set()
    for base in cls.__mro__:
        takes = inspect.signature(base.__init__).parameters
        names |= takes.keys()
        if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
            break
    return names


def _shorten(config: Config) -> None:
    """Writes our own classes by their bare name: it stays right when a file moves."""
    for axis in AXES:
        path = config[axis]["class_path"]
        name = path.rpartition(".")[2]
        if path.startswith("dtr_lightning.") and name in valid_choices(AXES[axis][0]):
            config[axis] = {"class_path": name, "init_args": config[axis].get("init_args") or {}}
