"""A person's own classes on the axes: each is tried once on two images before a run starts.

What it gives is compared with what it is to give; what it raises itself keeps its traceback.
"""

__all__ = ["check_own", "check_own_data"]

import copy
import operator
from typing import Any

import torch
from torch.utils.data import TensorDataset

from dtr_lightning.data import Data
from dtr_lightning.diffusion.samplers import Sampler
from dtr_lightning.errors import UserError
from dtr_lightning.expect import expect, is_own
from dtr_lightning.metrics import Features
from dtr_lightning.models import RangeExperts
from dtr_lightning.training.module import DiffusionModule

N = 2  # images of a trial
LOOKED_AT = 16  # images of a split
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


def check_own_data(data: Data) -> None:
    """Raises UserError for a person's own data without sizes, or with images or labels amiss."""
    if not is_own(data) or not isinstance(data, Data):  # benchmarks put a module of theirs here
        return
    name = type(data).__name__
    for key in ("in_channels", "image_size", "num_classes", "class_names"):
        if not hasattr(data, key):
            raise UserError(f"{name} has no {key}; its constructor is to set it")
    if len(data.class_names) != data.num_classes:
        names = len(data.class_names)
        raise UserError(f"{name} has {names} class_names for {data.num_classes} num_classes")
    for part in ("train", "val"):
        source = f"{name}.split({part!r})"
        try:
            split = data.split(part)
        except KeyError as error:
            raise UserError(f"{source} has no {error}; the splits are 'train' and 'val'") from error
        if not hasattr(split, "__len__") or not hasattr(split, "__getitem__"):
            kind = type(split).__name__
            raise UserError(f"{source} gives {kind}; expected a map-style Dataset with a length")
        if isinstance(split, TensorDataset) and len(split.tensors) == 2:
            images, labels = split.tensors
            expect(f"{source}: labels", labels, (len(split),), "N", INTEGERS)
        elif split:
            places = torch.linspace(0, len(split) - 1, min(LOOKED_AT, len(split))).long().tolist()
            pairs = [split[i] for i in places]
            images, labels = _pairs(data, pairs, source)
        else:
            continue
        shape = (len(images), *data.shape)
        expect(f"{source}: images", images, shape, "N, C, H, W", (torch.uint8,))
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < data.num_classes:
            raise UserError(
                f"{source} has labels from {int(labels.min())} to {int(labels.max())}; "
                f"expected 0 to {data.num_classes - 1}, num_classes - 1"
            )


def _pairs(data: Data, pairs: list[Any], source: str) -> tuple[torch.Tensor, torch.Tensor]:
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise UserError(f"{source}: an item is {type(pair).__name__}; expected (image, label)")
        expect(f"{source}: an image", pair[0], data.shape, "C, H, W", (torch.uint8,))
        try:
            operator.index(pair[1])
        except TypeError:
            raise UserError(f"{source}: a label is {pair[1]!r:.40}; expected an integer") from None
    images, labels = zip(*pairs, strict=True)
    return torch.stack(images), torch.tensor([operator.index(label) for label in labels])


@torch.no_grad()
def check_own(data: Data, module: DiffusionModule, sampler: Sampler, features: Features) -> None:
    """Raises UserError if a person's own class on any other axis gives something else."""
    model = module.model.networks[0] if isinstance(module.model, RangeExperts) else module.model
    process, weight, rule = module.diffusion, module.loss_weight, module.gradients
    if not any(map(is_own, (model, model.router, process, weight, rule, sampler, features))):
        return
    model, weight, rule = map(copy.deepcopy, (model, weight, rule))  # a trial changes no state
    c, height, width = data.shape
    channels = c * (1 + process.learns_variance)
    with torch.random.fork_rng(devices=[]):
        if is_own(features):
            images = torch.randint(256, (N, *data.image_shape), dtype=torch.uint8)
            _check_features(features, images)
        x0 = torch.rand(N, *data.shape).mul(2).sub(1)
        if any(map(is_own, (model, model.router, process, weight))):
            t = process.timesteps_at(torch.tensor([0.25, 0.75]))
            y = module.condition(torch.arange(N) % data.num_classes, torch.arange(N))
            _check_router(model, t)
            output = model.forward(torch.randn(x0.shape), t, y)  # not what is compiled
            name = type(model).__name__
            expect(f"{name}.forward", output, (N, channels, height, width), "N, C_out, H, W")
            losses = process.losses(output, x0, t, torch.randn(x0.shape))
            for part in losses:
                expect(f"{type(process).__name__}.losses", part, (N,), "N")
            expect(f"{type(weight).__name__}.forward", weight(*losses, t), (), "a scalar")
        if is_own(weight):
            t = weight.timesteps(data.batch_size, torch.device("cpu"))
            kinds = (torch.int64, torch.float32)
            expect(f"{type(weight).__name__}.timesteps", t, (data.batch_size,), "N", kinds)
        if is_own(rule) and not rule.joint:
            merged = rule.merge(torch.randn(rule.clusters, 8), 0)
            expect(f"{type(rule).__name__}.merge", merged, (8,), "D")
        if is_own(sampler):
            output = torch.zeros(N, channels, height, width)
            noise = torch.randn(x0.shape)
            drawn = sampler(lambda x, t: output, noise, process, lambda: torch.randn(noise.shape))
            expect(type(sampler).__name__, drawn, (N, c, height, width), "N, C, H, W")


def _check_router(model: Any, t: torch.Tensor) -> None:
    router, name = model.router, type(model.router).__name__
    routes = router(t, model.embed(t))
    blocks = getattr(router, "blocks", None)
    if not isinstance(routes, list | tuple) or not all(map(callable, routes)):
        raise UserError(f"{name}.forward gives {type(routes).__name__}; expected a list of routes")
    if blocks is not None and len(routes) != blocks:
        raise UserError(f"{name}.forward gives {len(routes)} routes for {blocks} blocks")
    expect(f"{name}.penalty", router.penalty(t, model.embed), (), "a scalar")


def _check_features(features: Features, images: torch.Tensor) -> None:
    name = type(features).__name__
    for key in ("name", "num_features"):
        if not hasattr(features, key):
            raise UserError(f"{name} has no {key}; its constructor is to set it")
    given = features(images)
    expect(f"{name}.forward", given, (N, features.num_features), "N, num_features")
    if (logits := features.logits(given)) is not None:
        expect(f"{name}.logits", logits, (N, None), "N, classes")
