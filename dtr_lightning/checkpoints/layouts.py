"""Whose checkpoint a file is, and its weights under our names.

Our parameter names are those of facebookresearch/DiT and openai/guided-diffusion; others differ in
few places, which this file lists.
"""

__all__ = ["KINDS", "OWN", "Checkpoint", "Kind", "recognise"]

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dtr_lightning.checkpoints.diffusers import from_diffusers
from dtr_lightning.checkpoints.reading import File, plain
from dtr_lightning.errors import UserError, choices

OWN = "dtr_lightning"  # also the key of our config in the header of a safetensors
Kind = Literal["dit", "sit", "dtr", "switch-dit", "guided-diffusion", "diffusers"]
KINDS: dict[str, str] = {
    "dit": "DiT (facebookresearch/DiT)",
    "sit": "SiT (willisma/SiT)",
    "dtr": "DTR (byeongjun-park/DTR)",
    "switch-dit": "Switch-DiT (byeongjun-park/Switch-DiT)",
    "guided-diffusion": "ADM (openai/guided-diffusion)",
    "diffusers": "DiTTransformer2DModel (diffusers)",
    OWN: "dtr_lightning",
}
# A name that tells the kind; the first that is there counts.
TELLING = {
    "transformer_blocks.0.norm1.linear.weight": "diffusers",
    "input_blocks.0.0.weight": "guided-diffusion",
    "router.routers.0.experts.w": "switch-dit",
    "x_embedder.proj.weight": "dit",
}
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
MASKS = re.compile(r"(?:blocks|router\.routers)\.(\d+)\.(?:routing\.)?_unit_mapping")
DERIVED = ("full_time", "prior._unit_mapping")  # of Switch-DiT
STEPS = re.compile(r"(?:^|_)(\d{4,8})$")  # of a file's name: 0400000.pt, ema_0.9999_250000.pt


@dataclass
class Checkpoint:
    """A recognised checkpoint: weights by our names, float32, and what else the file says."""

    path: Path
    kind: str
    state: dict[str, Tensor]
    which: str  # of the weights: ema, model, or all where there is no choice
    options: dict[str, Any] = field(default_factory=dict)  # that its training was given
    metadata: dict[str, str] = field(default_factory=dict)  # of a safetensors
    masks: Tensor | None = None  # bool [blocks, tasks, channels] of DTR's tables
    prior: Tensor | None = None  # [tasks, N M] of Switch-DiT's
    steps: int | None = None


def recognise(file: File, kind: str | None = None, weights: str | None = None) -> Checkpoint:
    """Returns the weights of a file under our names, and what it says of their network.

    kind: where the names tell less, as of SiT, whose names are DiT's. weights: ema or model, of a
    training checkpoint. UserError for a file of none of the kinds, or without these weights.
    """
    if kind is not None and kind not in KINDS:
        raise choices("kind of checkpoint", kind, KINDS)
    named, which = _weights(file, weights)
    ours = "current_model_state" in file.content or OWN in file.metadata
    state, masks = _cleaned(file.path, named, ours)
    if ours:
        steps = file.content.get("global_step")
        return Checkpoint(file.path, OWN, state, which, {}, file.metadata, steps=steps)
    recognised = next((recognised for name, recognised in TELLING.items() if name in state), None)
    if recognised is None:
        some = ", ".join(sorted(state)[:3])
        raise UserError(
            f"{file.path} holds weights of a network that is not known ({some}, ...); "
            f"valid: {', '.join(KINDS.values())}"
        )
    options = _options(file)
    if any(name.startswith("projectors.") for name in state):
        raise UserError(
            f"{file.path} is of REPA, whose time runs from data to noise and which has projectors: "
            "it is not read"
        )
    sit = "path_type" in options or "sit" in re.split(r"[^a-z]", file.path.stem.lower())
    if recognised == "dit" and masks is not None:
        recognised = "dtr"
    elif recognised == "dit" and (kind == "sit" or (kind is None and sit)):
        recognised = "sit"
    if kind is not None and kind != recognised:
        raise UserError(
            f"{file.path} is not of the kind {kind}: its names are those of {recognised}"
        )
    prior = state.pop(DERIVED[1], None)
    state.pop(DERIVED[0], None)
    if recognised == "diffusers":
        options |= file.config
        state = from_diffusers(file.path, state, options)
    if recognised == "sit":
        _check_sit(file.path, options)
        state |= _of_velocity(state)
    return Checkpoint(
        file.path, recognised, state, which, options, file.metadata, masks, prior, _steps(file)
    )


def _weights(file: File, weights: str | None) -> tuple[Mapping[str, Any], str]:
    """Returns the mapping of names to weights in a file, and which of several it is."""
    content = file.content
    if "current_model_state" in content:  # a run's own: the state_dict is the average
        parts = {"ema": content["state_dict"], "model": content["current_model_state"]}
        start = "model."
    else:
        parts = {
            key: content[key] for key in ("ema", "model") if isinstance(content.get(key), dict)
        }
        start = ""
        if not parts:
            whole = content.get("state_dict", content)
            parts = {"all": whole if isinstance(whole, dict) else content}
    which = weights or next(iter(parts))
    if which not in parts:
        valid = ", ".join(parts)
        if "all" in parts:
            valid = "none: it holds one set of weights, leave --weights out"
        raise UserError(f"{file.path} has no weights called {which!r}; valid: {valid}")
    state = {name: value for name, value in parts[which].items() if isinstance(name, str)}
    if start:
        state = {n.removeprefix(start): w for n, w in state.items() if n.startswith(start)}
    return state, which


def _cleaned(
    path: Path, named: Mapping[str, Any], ours: bool
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Returns the weights float32 by name without wrappers, and DTR's tables apart.

    What is no float belongs to the state of our own routers, or is derived elsewhere.
    """
    state: dict[str, Tensor] = {}
    tables: dict[int, Tensor] = {}
    for name, value in named.items():
        while name.startswith(WRAPPERS):
            name = name.partition(".")[2]
        if name.startswith("routers."):  # Switch-DiT has them at the top
            name = f"router.{name}"
        if not isinstance(value, Tensor):
            continue
        if table := MASKS.fullmatch(name):
            tables[int(table[1])] = value
            continue
        if not value.is_floating_point():
            if ours:
                state[name] = value
            continue
        if not value.isfinite().all():
            raise UserError(f"{path}: {name} is not finite")
        state[name] = value.float()
    if not state:
        raise UserError(f"{path} holds no weights: no tensor with a name in it")
    if not tables:
        return state, None
    shapes = {tuple(table.shape) for table in tables.values()}
    if len(shapes) > 1 or sorted(tables) != list(range(len(tables))):
        raise UserError(f"{path}: the masks of its blocks differ in shape, or are not of all")
    return state, torch.stack([tables[i] for i in range(len(tables))]).bool()


def _options(file: File) -> dict[str, Any]:
    """Returns what the options of a training say, by their last name; later ones count."""
    given: dict[str, Any] = {}

    def walk(values: Any) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                walk(value)
            elif value is not None and "${" not in str(value):  # a reference to another option
                given[key] = value

    for key in ("args", "config"):
        if isinstance(options := plain(file.content.get(key)), dict):
            walk(options)
    return given


def _steps(file: File) -> int | None:
    """Returns how many steps a network was trained, by its optimiser or the file's name."""
    optimiser = file.content.get("opt")
    states = optimiser.get("state") if isinstance(optimiser, dict) else None
    for state in (states or {}).values() if isinstance(states, dict) else ():
        if isinstance(state, dict) and isinstance(state.get("step"), int | float | Tensor):
            return int(state["step"])
    named = STEPS.search(file.path.stem)
    return int(named[1]) if named else None


def _check_sit(path: Path, options: Mapping[str, Any]) -> None:
    for key, valid in {"path_type": "linear", "prediction": "velocity"}.items():
        if str(options.get(key, valid)).lower() != valid:
            raise UserError(f"{path}: SiT with {key} {options[key]} is not read; valid: {valid}")


def _of_velocity(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns SiT's last layer for our velocity eps - x_0, which is the negative of its own.

    SiT drops the second half of its output channels, those of a variance.
    """
    channels = state["x_embedder.proj.weight"].shape[1]
    patch = state["x_embedder.proj.weight"].shape[-1]
    last = {}
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        rows = state[name].unflatten(0, (patch * patch, -1))  # (p p, C_out, ...)
        last[name] = -rows[:, :channels].flatten(0, 1)
    return last
