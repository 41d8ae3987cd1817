"""From YAML files and dotted options to one plain, resolved config: the signatures are the schema.

jsonargparse reads the constructor signatures. Each axis of an experiment is a choice among the
subclasses of one base class, by name or by the import path of a person's own class.
"""

__all__ = [
    "AXES",
    "Config",
    "Parser",
    "build",
    "make_parser",
    "parse",
    "resolve",
    "run_name",
    "valid_choices",
]

import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

from dtr_lightning.data import Data
from dtr_lightning.diffusion import Diffusion
from dtr_lightning.errors import UserError, choices
from dtr_lightning.evaluation import Protocol
from dtr_lightning.loss_weights import LossWeight
from dtr_lightning.metrics import Features
from dtr_lightning.mistakes import explain
from dtr_lightning.models import Denoiser
from dtr_lightning.module import DiffusionModule
from dtr_lightning.naming import flatten, slug
from dtr_lightning.routers import Router
from dtr_lightning.samplers import Sampler

Config = dict[str, Any]

# An axis, its base class, and the arguments that follow from other axes.
AXES: dict[str, tuple[type, set[str]]] = {
    "data": (Data, set()),
    "model": (Denoiser, {"input_size", "in_channels", "num_classes", "learn_sigma", "router"}),
    "router": (Router, {"tasks", "seed"}),
    "loss_weight": (LossWeight, set()),
    "sampler": (Sampler, set()),
    "features": (Features, set()),
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
    for axis, (base, linked) in AXES.items():
        parser.add_subclass_arguments(base, axis, skip=linked, required=True)
    parser.add_class_arguments(Diffusion, "diffusion")
    linked = {"model", "diffusion", "loss_weight", "seed"}
    parser.add_class_arguments(DiffusionModule, "module", skip=linked)
    parser.add_class_arguments(Protocol, "evaluation")
    parser.add_argument("--checkpoint.every", type=int, default=1000, help="steps, of last.ckpt")
    parser.add_argument(
        "--checkpoint.milestones", type=int, default=0, help="steps, of those kept; 0: none"
    )
    others = set(inspect.signature(Trainer).parameters) - TRAINER_OPTIONS
    parser.add_class_arguments(Trainer, "trainer", skip=others)
    defaults = {"router": "NoRouting", "loss_weight": "Constant", "sampler": "DDPM"}
    parser.set_defaults(defaults | {"trainer.max_steps": 400_000, "trainer.log_every_n_steps": 50})
    return parser


class Parsed(NamedTuple):
    """A resolved config, the --out that a command may have, and the YAML files it was read from."""

    config: Config
    out: str | None
    files: list[str]


def parse(parser: Parser, arguments: Sequence[str]) -> Parsed:
    """Returns the resolved config of command-line arguments; UserError on anything wrong."""
    given = list(arguments)
    for i, argument in enumerate(given):
        if argument.startswith("--config="):
            _check_yaml(argument.removeprefix("--config="))
        elif argument == "--config" and i + 1 < len(given):
            _check_yaml(given[i + 1])
    namespace = parser.parse_args(given)
    files = [str(file) for file in namespace.pop("config", None) or []]
    out = namespace.pop("out", None)
    config = yaml.safe_load(parser.dump(namespace, skip_none=False, skip_validation=True))
    _shorten(config)
    check(config)
    return Parsed(config, out, files)


def _check_yaml(file: str) -> None:
    """Raises UserError that names the file, unless it is a mapping in YAML."""
    try:
        content = yaml.safe_load(Path(file).read_text())
    except OSError as error:
        raise UserError(f"config file {file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold options as `key: value`")


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
    diffusion = Diffusion(**config["diffusion"])
    build(Router, config["router"], tasks=diffusion.T)
    build(LossWeight, config["loss_weight"])
    diffusion.respaced(build(Sampler, config["sampler"]).steps)
    Protocol(**config["evaluation"])
    if (clip := config["trainer"]["gradient_clip_val"]) is not None and not clip > 0:
        raise UserError(f"trainer.gradient_clip_val must be positive; got {clip}")
    if (precision := str(config["trainer"]["precision"] or "32-true")) not in PRECISIONS:
        raise choices("trainer.precision", precision, PRECISIONS)
    steps = config["trainer"]["max_steps"]
    if steps < 1:
        raise UserError(f"trainer.max_steps must be at least 1; got {steps}")
    bounds = {"seed": 0, "trainer.log_every_n_steps": 1, "checkpoint.every": 1}
    for key, least in (bounds | {"checkpoint.milestones": 0}).items():
        if (value := flatten(config)[key]) is None or value < least:
            raise UserError(f"{key} must be at least {least}; got {value}")


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
    takes = inspect.signature(cls).parameters
    variadic = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    linked = {key: value for key, value in linked.items() if variadic or key in takes}
    return cls(**(choice.get("init_args") or {}), **linked)


def _shorten(config: Config) -> None:
    """Writes our own classes by their bare name: it stays right when a file moves."""
    for axis in AXES:
        path = config[axis]["class_path"]
        name = path.rpartition(".")[2]
        if path.startswith("dtr_lightning.") and name in valid_choices(AXES[axis][0]):
            config[axis] = {"class_path": name, "init_args": config[axis].get("init_args") or {}}
