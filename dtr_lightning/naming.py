"""What a config is called: dotted keys, a hash of what it computes, the name of its run."""

__all__ = ["MACHINE_KEYS", "config_hash", "flatten", "science", "slug"]

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

# Where and how a run is computed, not what: these may differ between two parts of one run.
MACHINE_KEYS = (
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "data.workers",
    "evaluation.batch_size",
)


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


def science(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the flat config without what only says where and how it is computed."""
    return {key: value for key, value in flatten(config).items() if key not in MACHINE_KEYS}


def config_hash(config: Mapping[str, Any]) -> str:
    """Returns six hexadecimal digits of what the run computes, whatever the machine."""
    canonical = json.dumps(science(config), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:6]


def slug(config: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Returns the name of a run: router, what differs from its base, seed, hash.

    For instance `dtr-alpha=4-beta=0.8-seed=0-1a2b3c`.
    """
    flat, flat_base = science(config), science(base)
    parts = [str(flat.pop("router", "run")).rsplit(".", 1)[-1].lower()]
    seed = flat.pop("seed", 0)
    flat_base.pop("seed", None)
    # what an experiment is about comes first: long names are cut
    about = ("router", "loss_weight", "gradients", "diffusion", "experts", "model")
    order = {axis: rank for rank, axis in enumerate(about)}
    for key, value in sorted(flat.items(), key=lambda item: order.get(item[0].split(".")[0], 9)):
        if value != flat_base.get(key) or key in ("router.alpha", "router.beta"):
            value = f"{value:g}" if isinstance(value, float) else value
            parts.append(f"{key.rsplit('.', 1)[-1]}={value}")
    name = re.sub(r"[^\w=.+-]+", "_", "-".join([*parts, f"seed={seed}"]))[:120]
    return f"{name}-{config_hash(config)}"
