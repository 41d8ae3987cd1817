"""What a run is called, and which of its options say what it is, how far it goes and where it runs.

Identity: data, network, router, objective, optimiser, seed; it is the run's name. Length and
protocol: how many steps, how often to save, how the result is measured; a run can be trained longer
and evaluated otherwise. Machine: where data lie, devices, workers; a run moves between machines.
"""

__all__ = [
    "PRECISIONS",
    "config_hash",
    "cut",
    "evaluation_name",
    "flatten",
    "identity",
    "is_protocol",
    "protocol",
    "settings",
    "slug",
]

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

MACHINE = (
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.accumulate_grad_batches",
    "trainer.max_time",
    "trainer.profiler",
    "logger",
    "data.root",
    "data.vae",
    "data.clip",
    "data.workers",
    "evaluation.batch_size",
)
# How often a run logs, saves and is evaluated on the way: no final number depends on it.
INTERVALS = ("trainer.log_every_n_steps", "checkpoint", "evaluation.every", "evaluation.every_n")
LENGTH = ("trainer.max_steps",)
# Options that came later: at these values they leave a run the name that it had without them.
LATER = {"module.lr_warmup": 0, "module.lr_decay": 0, "model.use_checkpoint": False}
PROTOCOL = ("sampler", "features", "evaluation")
# What a protocol leaves out at its default: it follows from the data, or was always so.
PRECISIONS = ("evaluation.precision", "evaluation.decode_precision")
UNSTATED = {"sampler.clip": None, **dict.fromkeys(PRECISIONS, "float32")}
UNSTATED |= {"evaluation.reference_split": "train"}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {dotted key: value}; a choice k of class X gives k: X and its arguments k.a."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and "class_path" in value:
            flat[prefix + key] = value["class_path"]
            arguments = value.get("init_args")
            if isinstance(arguments, Mapping):
                flat |= flatten(arguments, f"{prefix}{key}.")
        elif isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _within(key: str, groups: tuple[str, ...]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def settings(
    config: Mapping[str, Any], contents: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Returns the flat config without what changes no final number: machine and intervals.

    contents {dotted option: digest} stand for the files that options name (see contents.py).
    """
    flat = {k: v for k, v in flatten(config).items() if not _within(k, MACHINE + INTERVALS)}
    later = LATER if flat.get("model") != "ADM" else {**LATER, "model.use_checkpoint": None}
    flat = {k: v for k, v in flat.items() if k not in later or v != later[k]}
    return flat | dict(contents or {})


def identity(
    config: Mapping[str, Any], contents: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Returns what a run is: its settings without length and protocol."""
    flat = settings(config, contents)
    return {key: value for key, value in flat.items() if not _within(key, LENGTH + PROTOCOL)}


def protocol(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how a run's final result is measured, by option; files by their names.

    The noise process is part of it: sampling follows its schedule. Whether x_0 is clipped follows
    the data's codec unless it was given; who knows the codec states it.
    """
    stated = {}
    for key, value in settings(config).items():
        if key in UNSTATED and value == UNSTATED[key]:
            continue
        if _within(key, (*PROTOCOL, "diffusion")):
            if isinstance(value, str) and os.path.isabs(value):
                value = Path(value).name
            stated[key.removeprefix("evaluation.").removeprefix("diffusion.")] = value
    return stated


def is_protocol(key: str) -> bool:
    """Returns whether a dotted option, or the content of its file, is of the protocol."""
    return _within(key, PROTOCOL)


def config_hash(flat: Mapping[str, Any]) -> str:
    """Returns six hexadecimal digits of a flat config, such as an identity."""
    canonical = json.dumps(flat, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:6]


def cut(name: str, size: int) -> str:
    """Returns the start of a part of a file's name, up to a size in bytes, as the disk counts."""
    return name.encode(errors="replace")[:size].decode(errors="ignore")


def evaluation_name(protocol: Mapping[str, Any], step: int) -> str:
    """Returns the name of an evaluation at a step: what identifies its protocol."""
    text = json.dumps([protocol, step], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    sampler = f"{protocol['sampler'].lower()}{protocol['sampler_steps']}"
    guidance, n = protocol["guidance"], protocol["n"]
    return f"step={step}-{sampler}-guidance={guidance:g}-n={n}-{digest}"


def slug(
    config: Mapping[str, Any],
    base: Mapping[str, Any],
    contents: Mapping[str, str] | None = None,
    varied: Collection[str] = (),
) -> str:
    """Returns the name of a run: router, what differs from its base, seed, hash.

    For instance `dtr-alpha=4-beta=0.8-seed=0-1a2b3c`. varied: the options of length and protocol
    that the points of a sweep differ in; other runs of any length and protocol are one run. Files
    are named by their stem: what they hold is in the hash.
    """
    flat = flatten(config)
    other = (*LENGTH, *PROTOCOL, *INTERVALS)
    apart = {key: flat[key] for key in varied if key in flat and _within(key, other)}
    full = identity(config, contents) | apart
    shown = identity(config) | apart
    plain = {key: value for key, value in flatten(base).items() if key not in apart}
    parts = [str(shown.pop("router", "run")).rsplit(".", 1)[-1].lower()]
    seed = shown.pop("seed", 0)
    # what an experiment is about comes first: long names are cut
    about = ("router", "loss_weight", "gradients", "diffusion", "experts", "model")
    order = {axis: rank for rank, axis in enumerate(about)}
    for key, value in sorted(shown.items(), key=lambda item: order.get(item[0].split(".")[0], 9)):
        if value != plain.get(key) or key in ("router.alpha", "router.beta"):
            if key in (contents or {}):
                value = Path(value).stem
            value = f"{value:g}" if isinstance(value, float) else value
            parts.append(f"{key.rsplit('.', 1)[-1]}={value}")
    name = re.sub(r"[^\w=.+-]+", "_", "-".join([*parts, f"seed={seed}"]))
    return f"{cut(name, 120)}-{config_hash(full)}"
