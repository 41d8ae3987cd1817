"""From YAML files and dotted options to one plain, resolved config: the signatures are the schema.

jsonargparse reads the constructor signatures. Each axis of an experiment is a choice among the
subclasses of one base class, by name or by the import path of a person's own class.
"""

__all__ = ["AXES", "Config", "Parser", "build", "make_parser", "parse", "resolve", "valid_choices"]

import difflib
import importlib
import inspect
import json
import re
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
from dtr_lightning.models import Denoiser
from dtr_lightning.module import DiffusionModule
from dtr_lightning.routers import Router
from dtr_lightning.run import flatten
from dtr_lightning.samplers import Sampler

Config = dict[str, Any]

# An axis, its base class, and the arguments that follow from other axes.
AXES: dict[str, tuple[type, set[str]]] = {
    "data": (Data, set()),
    "model": (Denoiser, {"input_size", "in_channels", "num_classes", "learn_sigma", "router"}),
    "router": (Router, {"tasks"}),
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


class Parser(ArgumentParser):
    """An ArgumentParser whose errors are UserErrors of one line with the valid choices."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Raises UserError with the message in one line."""
        raise UserError(_one_line(message, getattr(self, "given", []))) from ex


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
    parser.given = list(arguments)
    try:
        namespace = parser.parse_args(list(arguments))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(_one_line(str(error), [])) from error
    files = [str(file) for file in namespace.pop("config", None) or []]
    out = namespace.pop("out", None)
    config = yaml.safe_load(parser.dump(namespace, skip_none=False, skip_validation=True))
    _shorten(config)
    check(config)
    return Parsed(config, out, files)


def resolve(file: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Returns the resolved config of a YAML file with overrides by dotted option.

    For instance resolve("configs/digits.yaml", {"router": "DTR", "router.alpha": 4}).
    """
    if not Path(file).is_file():
        raise UserError(f"config file {file} does not exist")
    arguments = [f"--config={file}"]
    for key, value in (overrides or {}).items():
        arguments.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
    return parse(make_parser(), arguments).config


def check(config: Config) -> None:
    """Raises UserError for values out of range on the axes that are cheap to make."""
    tasks = Diffusion(**config["diffusion"]).T
    build(Router, config["router"], tasks=tasks)
    for axis in ("loss_weight", "sampler"):
        build(AXES[axis][0], config[axis])
    Protocol(**config["evaluation"])
    steps = config["trainer"]["max_steps"]
    if steps < 1:
        raise UserError(f"trainer.max_steps must be at least 1; got {steps}")
    for key, least in (("trainer.log_every_n_steps", 1), ("checkpoint.every", 1)):
        if (value := flatten(config)[key]) is None or value < least:
            raise UserError(f"{key} must be at least {least}; got {value}")


def valid_choices(base: type) -> dict[str, type]:
    """Returns the classes that can be chosen on an axis by their name."""
    found: dict[str, type] = {}
    for subclass in base.__subclasses__():
        if not inspect.isabstract(subclass):
            found[subclass.__name__] = subclass
        found |= valid_choices(subclass)
    return dict(sorted(found.items()))


def build(base: type, choice: Mapping[str, Any], **linked: Any) -> Any:
    """Returns the object of a choice {class_path, init_args}, with arguments that are linked."""
    path = choice["class_path"]
    if "." in path:
        module, _, name = path.rpartition(".")
        cls = getattr(importlib.import_module(module), name)
    else:
        cls = valid_choices(base)[path]
    return cls(**(choice.get("init_args") or {}), **linked)


def _shorten(config: Config) -> None:
    """Writes our own classes by their bare name: it stays right when a file moves."""
    for axis in AXES:
        path = config[axis]["class_path"]
        name = path.rpartition(".")[2]
        if path.startswith("dtr_lightning.") and name in valid_choices(AXES[axis][0]):
            config[axis] = {"class_path": name, "init_args": config[axis].get("init_args") or {}}


def _one_line(message: str, given: Sequence[str]) -> str:
    """Returns jsonargparse's message as one line that names the valid choices."""
    unknown = r"Option '([^']+)' is not accepted|nrecognized arguments: (\S+)"
    if found := re.search(unknown, message):
        return _unknown_option(next(filter(None, found.groups())), given)
    axis = re.search(r'Parser key "(?:[\w.]*\.)?(\w+)"', message)
    value = re.search(r"(?:Given value|Got value|value): (.*)", message)
    if axis and axis[1] in AXES and value and "Given value" in message:
        base = AXES[axis[1]][0]
        name = value[1]
        if name.startswith("{"):
            name = (yaml.safe_load(name) or {}).get("class_path", name)
        if name in valid_choices(base) and (detail := re.findall(r"- (.*)", message)):
            return f"{axis[1]}: {detail[-1]}"
        return f"{choices(axis[1].replace('_', ' '), name, valid_choices(base))}, or an import path"
    if axis and (wanted := re.search(r"Expected an? (?:<class '(\w+)'>|(.*?))[.\n]", message)):
        got = value[1] if value else "something else"
        return f"{axis[1]}: expected {wanted[1] or wanted[2]}, got {got}"
    return " ".join(message.split())


def _unknown_option(option: str, given: Sequence[str]) -> str:
    name = option.lstrip("-").partition("=")[0]
    typed = [g.lstrip("-").partition("=")[0] for g in given]
    full = next((g for g in typed if g == name or g.endswith(f".{name}")), name)
    known = [f"--{key}" for key in _known_options()]
    group = [o for o in known if "." in full and o.startswith(f"--{full.partition('.')[0]}.")]
    near = difflib.get_close_matches(f"--{full}", group or known, n=6, cutoff=0.5)
    valid = group or near or [o for o in known if "." not in o]
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown option {full!r}{hint} valid: {', '.join(valid)}"


def _known_options() -> list[str]:
    parser = make_parser()
    keys = [a.dest for a in parser._actions if a.dest not in ("help", "print_config")]
    for axis, (base, linked) in AXES.items():
        for cls in valid_choices(base).values():
            own = [n for c in cls.__mro__[:-1] for n in inspect.signature(c.__init__).parameters]
            names = dict.fromkeys(own)
            keys += [f"{axis}.{n}" for n in names if n not in {"self", "args", "kwargs"} | linked]
    return sorted(set(keys))
