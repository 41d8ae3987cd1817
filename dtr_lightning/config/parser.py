"""From YAML files and dotted options to one plain, resolved config: the signatures are the schema.

jsonargparse reads the constructor signatures. Each axis of an experiment is a choice among the
subclasses of one base class, by name or by the import path of a person's own class.
"""

__all__ = [
    "AXES",
    "Config",
    "Parser",
    "check",
    "contents_of",
    "expert_configs",
    "instantiate",
    "make_parser",
    "parse",
    "resolve",
    "run_name",
    "takes",
    "valid_choices",
]

import argparse
import contextlib
import copy
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import docstring_parser
from jsonargparse import ArgumentParser, Namespace

from dtr_lightning.cli.commands import check_utf8
from dtr_lightning.config.checks import Config, check, expert_configs
from dtr_lightning.config.contents import contents, with_absolute_paths
from dtr_lightning.config.evaluation import EvaluationConfig
from dtr_lightning.config.messages import explain, explain_choice
from dtr_lightning.config.recipes import expand, parts
from dtr_lightning.config.registry import (
    instantiate,
    options,
    required_options,
    valid_choices,
)
from dtr_lightning.config.trainer_options import OF_FIT, TRAINER_OPTIONS
from dtr_lightning.data import Data
from dtr_lightning.diffusion import Process
from dtr_lightning.diffusion.samplers import Sampler
from dtr_lightning.errors import UserError, choices
from dtr_lightning.metrics import Features
from dtr_lightning.models import Denoiser
from dtr_lightning.objectives import Gradients, LossWeight
from dtr_lightning.routing import Router
from dtr_lightning.rundir.naming import slug
from dtr_lightning.training.module import DiffusionModule

# Of the images and of the network's output, under the names of DiT and of guided-diffusion.
SIZES = {"input_size", "image_size", "in_channels", "out_channels", "num_classes", "learn_sigma"}
# An axis, its base class, and the arguments that follow from other axes.
AXES: dict[str, tuple[type, set[str]]] = {
    "data": (Data, set()),
    "model": (Denoiser, SIZES | {"router", "null_text", "tasks"}),
    "router": (Router, {"seed", "steps"}),
    "diffusion": (Process, set()),
    "loss_weight": (LossWeight, set()),
    "gradients": (Gradients, {"seed"}),
    "sampler": (Sampler, set()),
    "features": (Features, set()),
}
BASES = {axis: base for axis, (base, _) in AXES.items()}
DEFAULTS = {
    "router": "NoRouting",
    "diffusion": "Diffusion",
    "loss_weight": "Constant",
    "gradients": "Joint",
    "sampler": "DDPM",
}
# What no parser needs to know of the others, in the order of a config.
GROUPS = ("seed", "experts", "init", "init_partial", "logger", *AXES)
GROUPS += ("module", "evaluation", "checkpoint", "trainer")


class Parser(ArgumentParser):
    """An ArgumentParser whose errors are UserErrors of one line with the valid choices."""

    of_choice: type | None = None  # the class whose options it parses, None: all options

    def add_class_arguments(self, class_type: type, *args: Any, **kwargs: Any) -> list[str]:
        """Adds the arguments of a class, and remembers the class of a choice on an axis."""
        if not (args or kwargs.get("nested_key")):
            self.of_choice = class_type
        added = super().add_class_arguments(class_type, *args, **kwargs)
        if not added:  # what `--router.help NAME` then shows in their place
            about = docstring_parser.parse(class_type.__doc__ or "").short_description
            self.epilog = " ".join(filter(None, (about, f"{class_type.__name__} has no options.")))
        return added

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises UserError; the parsers of the classes on an axis come here too."""
        shown = (a for a in self._actions if a.help != argparse.SUPPRESS)
        hidden = ("help", "config")
        options = {_written(a): str(a.help) for a in shown if not a.dest.endswith(hidden)}
        for axis, (base, linked) in AXES.items():
            if self.of_choice and issubclass(self.of_choice, base):
                name = self.of_choice.__name__
                line = explain_choice(message, list(options), _choices(), axis, name, linked)
                raise UserError(line) from ex
        raise UserError(explain(message, options, _choices())) from ex


def _written(action: argparse.Action) -> str:
    return action.option_strings[0].lstrip("-") if action.option_strings else action.dest


def _choices() -> dict[str, dict[str, set[str]]]:
    """Returns the options of every choice on every axis."""
    own = {"self", "args", "kwargs"}
    return {
        axis: {name: options(base, name) - linked - own for name in valid_choices(base)}
        for axis, (base, linked) in AXES.items()
    }


def make_parser(description: str | None = None, groups: Sequence[str] = GROUPS) -> Parser:
    """Returns the parser of a run's config, or of some of its groups of options alone."""
    parser = Parser(description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--config", action="config", help="YAML file; later options override it")
    if "seed" in groups:
        add("--seed", type=int, default=0, help="of weights, batches, tasks and noise, 0 or more")
    if "experts" in groups:
        add(
            "--experts",
            type=int | list[tuple[int, int]],
            default=1,
            help="networks for as many equal ranges of tasks, or for these [low, high] (App. D)",
        )
    if "init" in groups:
        about = "checkpoint, run, or folder of diffusers or export.py, to start training from"
        add("--init", type=str | None, default=None, help=about)
    if "init_partial" in groups:
        about = "whether parameters that --init has not, or of another shape, start anew"
        add("--init_partial", type=bool, default=False, help=about)
    if "logger" in groups:
        about = "beside TensorBoard: wandb, csv or mlflow, or a list of them"
        add("--logger", type=list[str] | str | None, default=None, help=about)
    for axis in filter(AXES.__contains__, groups):
        base, linked = AXES[axis]
        about = f"name of a class below, or import path of your own; --{axis}.help NAME explains it"
        parser.add_subclass_arguments(
            base, axis, skip=linked, required=True, metavar="NAME", help=about
        )
    if "module" in groups:
        linked = {"model", "diffusion", "loss_weight", "gradients", "captions", "codec", "seed"}
        parser.add_class_arguments(DiffusionModule, "module", skip=linked)
    if "evaluation" in groups:
        parser.add_class_arguments(EvaluationConfig, "evaluation")
    if "checkpoint" in groups:
        add("--checkpoint.every", type=int, default=1000, help="steps between saves of last.ckpt")
        milestones = "steps between the checkpoints that are kept; 0: none"
        add("--checkpoint.milestones", type=int, default=0, help=milestones)
    for name, (kind, default, about) in TRAINER_OPTIONS.items() if "trainer" in groups else ():
        add(f"--trainer.{name}", type=kind, default=default, help=about)
    parser.set_defaults({k: v for k, v in DEFAULTS.items() if k.partition(".")[0] in groups})
    return parser


class Parsed(NamedTuple):
    """A resolved config, the YAML files it was read from, and what else train.py may be told."""

    config: Config
    out: str | None
    files: list[str]
    fast_dev_run: bool = False


def parse(parser: Parser, arguments: Sequence[str]) -> Parsed:
    """Returns the resolved config of command-line arguments; UserError on anything wrong."""
    expanded, files = expand(arguments)
    _check_words(arguments)
    try:
        namespace = parser.parse_args(expanded)
    except UserError as error:  # which recipe it was is lost to the parser
        raise UserError(str(error).replace('"config"', ", ".join(files), 1)) from error
    out, fast = namespace.pop("out", None), namespace.pop("fast_dev_run", False)
    config = with_absolute_paths(_plain(namespace), BASES)
    check(config)
    return Parsed(config, out, files, fast)


def _check_words(arguments: Sequence[str]) -> None:
    """Raises UserError for an option without its value; warns of one that is given twice."""
    check_utf8(arguments)
    for word, following in pairwise([*arguments, "--"]):
        dotted = word.startswith("--") and "." in word and not word.endswith(".help")
        if dotted and "=" not in word and following.startswith("--"):
            raise UserError(f"{word} needs a value: {word} VALUE, or {word}=VALUE")
    names = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    for name in dict.fromkeys(names):
        if names.count(name) > 1 and name != "--config":
            logging.getLogger(__name__).warning("note: %s is given twice; the last counts", name)


def _text(value: Any) -> str:
    """Returns a path or a member of an Enum as a YAML has it."""
    return value.name if isinstance(value, Enum) else str(value)


def _plain(namespace: Namespace) -> Config:
    """Returns what was parsed as plain values, our own classes by their bare name."""
    config = json.loads(json.dumps(namespace.as_dict(), default=_text))  # tuples become lists
    config.pop("config", None)
    # without them a run is what it was before they were
    for key in ("init", "init_partial", "logger"):
        if not config.get(key):
            config.pop(key, None)
    for key in OF_FIT:
        if not config.get("trainer", {}).get(key, True):
            config["trainer"].pop(key)
    if isinstance(config.get("logger"), str):
        config["logger"] = [config["logger"]]
    devices = config.get("trainer", {}).get("devices")
    if isinstance(devices, str) and devices.lstrip("-").isdecimal():
        config["trainer"]["devices"] = int(devices)  # "2" is one of its types too
    for axis in AXES.keys() & config.keys():
        # a name stays right when a file moves
        path = config[axis]["class_path"]
        name = path.rpartition(".")[2]
        shipped = path.startswith("dtr_lightning.") and name in valid_choices(AXES[axis][0])
        # a class without arguments is given none by the parser
        arguments = config[axis].get("init_args") or {}
        config[axis] = {"class_path": name if shipped else path, "init_args": arguments}
    return config


def resolve(file: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Returns the resolved config of a YAML file with overrides by dotted option.

    For instance resolve("configs/digits.yaml", {"router": "DTR", "router.alpha": 4}).
    """
    arguments = _by_group((file,), overrides or {})
    if arguments.keys() <= set(GROUPS):
        with contextlib.suppress(UserError):  # the whole parser knows what else is valid
            groups = [_group(name, *arguments.get(name, ())) for name in GROUPS]
            config = copy.deepcopy({key: value for group in groups for key, value in group.items()})
            config = with_absolute_paths(config, BASES)
            check(config)
            return config
    options = [f"--{key}={_word(value)}" for key, value in (overrides or {}).items()]
    return parse(_parser(), [f"--config={file}", *options]).config


def _by_group(files: Sequence[str | Path], overrides: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns what files and overrides say of each group of options, as arguments of its parser."""
    arguments: dict[str, list[str]] = {}
    for file in files:
        for group, texts in parts(Path(file)).items():
            arguments.setdefault(group, []).extend(f"--config={text}" for text in texts)
    for key, value in overrides.items():
        arguments.setdefault(key.partition(".")[0], []).append(f"--{key}={_word(value)}")
    return arguments


def _word(value: Any) -> str:
    """Returns the value of an option as the command line has it."""
    return value if isinstance(value, str) else json.dumps(value)


@lru_cache(4096)
def _group(name: str, *arguments: str) -> Config:
    """Returns one group of options, resolved: the points of a sweep differ in few of them."""
    return _plain(_parser((name,)).parse_args(arguments))


@cache
def _parser(groups: tuple[str, ...] = GROUPS) -> Parser:
    """Returns one parser for all configs of a sweep: to make one takes as long as to use it."""
    return make_parser(groups=groups)


def contents_of(
    config: Config, data: Data | None = None, digests: dict[str, str] | None = None
) -> dict[str, str]:
    """Returns the digests of what a config names: files, images, own classes (see contents)."""
    return contents(config, BASES, data, digests)


def run_name(
    config: Config,
    files: str | Path | Sequence[str | Path],
    overrides: Mapping[str, Any] | None = None,
    varied: Collection[str] = (),
    digests: dict[str, str] | None = None,
) -> str:
    """Returns the directory name of a run: what differs from its recipe, the seed and a hash.

    The recipe is a YAML file, or several of which later ones override earlier ones, with overrides;
    of a choice that differs, the options that differ from that choice's own defaults are named.
    varied: see slug; digests: see contents.
    """
    files = (files,) if isinstance(files, str | Path) else files
    choices_of_axes, required = [], []
    for axis, (base, linked) in AXES.items():
        path, arguments = config[axis]["class_path"], config[axis]["init_args"] or {}
        choices_of_axes.append((axis, path))
        for name in sorted((required_options(base, path) - linked) & arguments.keys()):
            required.append((axis, name, _word(arguments[name])))
    recipe = tuple(map(str, files)), json.dumps(overrides or {})
    base = _base(*recipe, tuple(choices_of_axes), tuple(required))
    return slug(config, base, contents_of(config, digests=digests), varied)


@lru_cache(1024)
def _base(
    files: tuple[str, ...],
    overrides: str,
    choices_of_axes: tuple[tuple[str, str], ...],
    required: tuple[tuple[str, str, str], ...],
) -> Config:
    """Returns the recipe with the defaults of the choices that a run made; a sweep has few.

    A recipe need not be a run by itself. What a choice requires and the recipe does not say, such
    as data.root, is in `required` (axis, option, value), and has no default to differ from.
    """
    arguments = _by_group(files, json.loads(overrides))
    base = {}
    for name in GROUPS:
        if name not in AXES:
            base |= _group(name, *arguments.get(name, ()))
    stated = {}
    for axis, choice in choices_of_axes:
        own = arguments.get(axis, [])
        needed = {name: f"--{axis}.{name}={value}" for of, name, value in required if of == axis}
        stated[axis] = _stated(axis, own, needed).get("class_path")
        base[axis] = _stated(axis, [*own, f"--{axis}={choice}"], needed)
    base = with_absolute_paths(base, BASES)
    return base | {axis: base[axis] | {"class_path": stated[axis]} for axis in AXES}


def _stated(axis: str, arguments: Sequence[str], needed: Mapping[str, str]) -> Config:
    """Returns the choice that arguments make on an axis; it may lack options that are needed.

    Empty where the arguments are no choice even with these.
    """
    lacking = dict(needed)
    for name in needed:  # what the arguments say themselves need not be added
        without = {key: word for key, word in lacking.items() if key != name}
        with contextlib.suppress(UserError):
            _group(axis, *arguments, *without.values())
            lacking = without
    try:
        choice = _group(axis, *arguments, *lacking.values())[axis]
    except UserError:
        return {}
    options = {k: v for k, v in choice["init_args"].items() if k not in lacking}
    return choice | {"init_args": options}


def takes(axis: str, choice: str, option: str) -> bool:
    """Returns whether a class, by name or import path, has an option; for no axis, True.

    UserError for a choice that is not valid.
    """
    if axis not in AXES:
        return True
    base, linked = AXES[axis]
    if "." not in choice and choice not in (valid := valid_choices(base)):
        raise choices(axis, choice, valid)
    return option in options(base, choice) - linked
