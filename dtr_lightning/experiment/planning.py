"""Whether runs could start, without the memory of their networks: a sweep asks before it trains."""

__all__ = ["check_captions", "check_parts", "network_options"]

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment

from dtr_lightning.checkpoints.fitting import fit_weights
from dtr_lightning.checkpoints.layouts import Checkpoint, recognise
from dtr_lightning.checkpoints.reading import read
from dtr_lightning.cli.commands import quiet
from dtr_lightning.config.registry import instantiate
from dtr_lightning.data import Data
from dtr_lightning.diffusion import Process
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.evaluation import check_guidance
from dtr_lightning.experiment.own_classes import check_own_data
from dtr_lightning.metrics import Features
from dtr_lightning.models import Denoiser, SiT
from dtr_lightning.objectives import Constant
from dtr_lightning.routing import NoRouting, Router
from dtr_lightning.training.launch import plain_trainer
from dtr_lightning.training.module import DiffusionModule


def network_options(data: Data, process: Process) -> dict[str, Any]:
    """Returns the sizes of a network that follow from data and process, under all their names."""
    return {
        "input_size": data.image_size,
        "image_size": data.image_size,
        "in_channels": data.in_channels,
        "out_channels": data.in_channels * (1 + process.learns_variance),
        "num_classes": data.num_classes,
        "learn_sigma": process.learns_variance,
        "null_text": None if data.captions is None else data.captions.null,
        "tasks": process.T,
    }


def check_captions(network: Denoiser, data: Data) -> None:
    """Raises UserError where a network is told by text and the data has none, or vice versa."""
    if network.takes_text != (data.captions is not None):
        needs = "captions" if network.takes_text else "class labels"
        raise UserError(
            f"{type(network).__name__} needs data with {needs}, which "
            f"{type(data).__name__} has not; TextDiT goes with DigitsCaptions or "
            "CaptionedLatents, other models with other data"
        )


class _Sizes(NoRouting):
    """Keeps what a network tells its router."""

    def bind(self, *sizes: Any, **named: Any) -> None:
        """Keeps the arguments, and makes no masks."""
        super().bind(*sizes, **named)
        self.sizes, self.named = sizes, named


def check_parts(configs: Mapping[str, Mapping[str, Any]], here: bool = False) -> None:
    """Raises UserError, with its label, for the first config by label that could not be built.

    What several have in common is made once; shipped networks are made without memory. `here` also
    asks whether this machine has their devices.
    """
    made: dict[str, Any] = {}

    def once(make: Callable[..., Any], *parts: Any) -> Any:
        key = json.dumps([make.__name__, *parts], sort_keys=True)
        if key not in made:
            made[key] = make(*parts)
        return made[key]

    def data(choice: Mapping[str, Any]) -> Data:
        images: Data = instantiate(Data, choice)
        check_own_data(images)
        images.check()
        return images

    def process(choice: Mapping[str, Any]) -> Process:
        return instantiate(Process, choice)

    def network(config: Mapping[str, Any]) -> tuple[Denoiser, _Sizes]:
        images, sizes = once(data, config["data"]), _Sizes()
        options = network_options(images, once(process, config["diffusion"]))
        own = "." in config["model"]["class_path"]
        with torch.device("cpu" if own else "meta"):
            made = instantiate(Denoiser, config["model"], **options, router=sizes)
        check_captions(made, images)
        return made, sizes

    def router(config: Mapping[str, Any], steps: int) -> None:
        _, sizes = once(network, config["network"])
        bound = instantiate(Router, config["router"], seed=0, steps=steps)
        bound.bind(*sizes.sizes, **sizes.named)

    def features(choice: Mapping[str, Any], images: Mapping[str, Any]) -> None:
        of = once(data, images)
        instantiate(Features, choice)(torch.zeros(1, *of.image_shape).byte())

    def module(options: Mapping[str, Any], config: Mapping[str, Any], diffusion: Any) -> None:
        made, _ = once(network, config)
        DiffusionModule(made, once(process, diffusion), Constant(), **{**options, "compile": False})

    def trainer(options: Mapping[str, Any]) -> None:
        quiet()
        without = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        plain_trainer({**options, **without, "plugins": [LightningEnvironment()]})

    def initial(path: str, kind: str | None) -> Checkpoint:
        return recognise(read(path), kind)

    for label, config in configs.items():
        if "model" not in config:
            continue
        try:
            whole = {key: config[key] for key in ("data", "model", "diffusion")}
            made_network, _ = once(network, whole)
            if "init" in config:  # routers are made elsewhere
                kind = "sit" if isinstance(made_network, SiT) else None
                checkpoint = once(initial, config["init"], kind)
                shared = {n: w for n, w in checkpoint.state.items() if n[:7] != "router."}
                partial = config.get("init_partial", False)
                fit_weights(made_network, shared, checkpoint.path, partial)
            check_guidance(made_network, config["evaluation"]["guidance"])
            parts = {"network": whole, "router": config["router"]}
            once(router, parts, config["trainer"]["max_steps"])
            once(module, config["module"], whole, config["diffusion"])
            if config["evaluation"]["n"] and once(data, config["data"]).has_images:
                once(features, config["features"], config["data"])
            if here:
                once(trainer, config["trainer"])
        except UserError as error:
            raise UserError(f"{label}: {error}") from error
