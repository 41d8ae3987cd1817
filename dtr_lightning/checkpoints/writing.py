"""A trained network in the layout of other code: the weights, what they need, and a card."""

__all__ = ["FORMATS", "Exported", "export"]

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from dtr_lightning.checkpoints.card import card
from dtr_lightning.checkpoints.diffusers import to_diffusers
from dtr_lightning.checkpoints.layouts import OWN
from dtr_lightning.config.registry import path_options
from dtr_lightning.data import Data
from dtr_lightning.diffusion import Process
from dtr_lightning.errors import UserError, choices
from dtr_lightning.expect import is_own
from dtr_lightning.models import ADM, Denoiser, DiT, RangeExperts, SiT, TextDiT
from dtr_lightning.routing import NoRouting, Router, Switch
from dtr_lightning.rundir.atomic import PREFIX, leftovers, replacing, telling_of_disk, write_text
from dtr_lightning.rundir.naming import flatten
from dtr_lightning.rundir.run import Run

Format = Literal["safetensors", "diffusers", "official"]
FORMATS = get_args(Format)
CARD = "README.md"  # written last: with it all is there
STATED = ("model", "router", "diffusion", "sampler", "module", "evaluation")  # in our own header
SIZES = ("in_channels", "image_size", "num_classes")


@dataclass(frozen=True)
class Exported:
    """A network with its average weights, where it comes from and how far it was trained."""

    network: Denoiser
    process: Process
    run: Run
    config: Mapping[str, Any]
    step: int


def export(of: Exported, to: str, out: str | Path) -> list[Path]:
    """Writes a network into a directory that is new or empty, all or nothing; returns the files.

    UserError, before anything is written, where the layout cannot hold the network, and at the end
    where another process has written to the directory meanwhile.
    """
    if to not in FORMATS:
        raise choices("export format", to, FORMATS)
    out = Path(out)
    taken = UserError(f"{out} is there already and not empty; choose another --out")
    if out.exists() and (not out.is_dir() or {*out.iterdir()} - {*leftovers(out)}):
        raise taken
    if isinstance(of.network, RangeExperts):
        raise UserError(f"{of.run.path} is of several experts, and a layout holds one network")
    write = {"safetensors": _own, "diffusers": _diffusers, "official": _official}[to]
    with _staged(out) as stage:
        try:
            stage.mkdir(parents=True)
            files = [*write(of, stage), stage / CARD]
            write_text(files[-1], card(of.network, of.process, of.run, of.config, of.step, to))
            os.close(os.open(out / CARD, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except (FileExistsError, FileNotFoundError) as error:  # another process was first
            raise taken from error
        for file in files:
            file.replace(out / file.name)
        for part in leftovers(out):  # of processes that were killed, or come too late
            shutil.rmtree(part, ignore_errors=True)
    return [out / file.name for file in files]


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """Yields a directory inside another to write to; where nothing comes of it neither is left."""
    stage = out / f"{PREFIX}{os.getpid()}"
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        with suppress(OSError):  # not empty: all is there
            out.rmdir()


def _state(network: Denoiser) -> dict[str, Tensor]:
    return {name: w.detach().cpu().clone() for name, w in network.state_dict().items()}


def _save(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    with telling_of_disk(path), replacing(path) as part:
        save_file(state, part, {"format": "pt"} | metadata)
    return path


def _own(of: Exported, out: Path) -> list[Path]:
    flat = flatten(of.config)
    stated: dict[str, Any] = {}
    parts: dict[str, tuple[type, object]] = {
        "model": (Denoiser, of.network),
        "router": (Router, of.network.router),
        "diffusion": (Process, of.process),
    }
    for key, value in flat.items():
        axis, _, option = key.partition(".")
        if axis not in STATED or (axis in parts and is_own(parts[axis][1])):
            continue  # whoever loads it names an own class: a file must not
        if axis in parts and option in path_options(parts[axis][0], flat[axis]):
            continue
        stated[key] = value
    data = of.run.meta["data"]
    if data["captions"]:
        places = {f"data.{option}" for option in path_options(Data, flat["data"])}
        kept = {key: value for key, value in flat.items() if key not in places}
        stated |= {key: value for key, value in kept.items() if key.partition(".")[0] == "data"}
    else:
        stated |= {"data": "NoImages"} | {f"data.{key}": data[key] for key in SIZES}
    stated["trainer.max_steps"] = of.step
    files = [_save(out / "model.safetensors", _state(of.network), {OWN: json.dumps(stated)})]
    if (tables := masks_of(of.network.router)) is not None:
        files.append(out / "masks.npy")
        with replacing(files[-1]) as part, part.open("wb") as file:
            np.save(file, tables.numpy())
    return files


def _diffusers(of: Exported, out: Path) -> list[Path]:
    network, router = of.network, of.network.router
    if not isinstance(network, DiT) or isinstance(network, TextDiT | SiT) or is_own(network):
        raise UserError(f"diffusers has no {type(network).__name__}; --to safetensors has")
    if not isinstance(router, NoRouting):
        raise UserError(
            f"diffusers' DiT has no routing, and without {type(router).__name__} this network is "
            "another; --to safetensors, or official, has it"
        )
    if of.process.prediction != "eps":
        raise UserError(f"diffusers' DiT predicts eps, this network {of.process.prediction}")
    state, block = _state(network), network.blocks[0]
    hidden = network.pos_embed.shape[-1]
    if block.mlp.fc1.out_features != 4 * hidden:
        raise UserError("diffusers' DiT has an MLP of 4 times its channels, this network has not")
    table = "y_embedder.embedding_table.weight"
    if not network.has_null:  # diffusers always has its row
        state[table] = torch.cat([state[table], torch.zeros(1, hidden)])
    config = {
        "_class_name": "DiTTransformer2DModel",
        "_null_class": network.has_null,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": hidden // block.attn.num_heads,
        "in_channels": network.in_channels,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": block.attn.num_heads,
        "num_embeds_ada_norm": network.num_classes,
        "num_layers": len(network.blocks),
        "out_channels": network.out_channels,
        "patch_size": network.patch_size,
        "sample_size": of.run.meta["data"]["image_size"],
    }
    weights = {name: weight.clone() for name, weight in to_diffusers(state).items()}
    files = [_save(out / "diffusion_pytorch_model.safetensors", weights, {}), out / "config.json"]
    write_text(files[1], json.dumps(config, indent=2) + "\n")
    return files


def _official(of: Exported, out: Path) -> list[Path]:
    network, router = of.network, of.network.router
    flow = of.process.prediction == "velocity"
    known = isinstance(network, ADM | DiT) and not isinstance(network, TextDiT)
    if not known or is_own(network) or flow != isinstance(network, SiT):
        raise UserError(
            f"no official code has {type(network).__name__} with {type(of.process).__name__}; "
            "--to safetensors has"
        )
    state, name = _state(network), type(router).__name__
    if isinstance(router, NoRouting):
        pass
    elif isinstance(network, SiT | ADM):
        raise UserError(
            f"the official {type(network).__name__} has no routing, this one {name}; --to "
            "safetensors has it"
        )
    elif isinstance(router, Switch) and router.mask == "residual":
        state = {key.removeprefix("router."): w for key, w in state.items()}
        state.pop("assignment")
        state["prior._unit_mapping"] = router.prior.cpu().float()
        state["full_time"] = torch.arange(router.tasks)
    elif (tables := masks_of(router)) is not None:
        state = {key: w for key, w in state.items() if not key.startswith("router.")}
        state |= {
            f"blocks.{i}.routing._unit_mapping": table.float() for i, table in enumerate(tables)
        }
    else:
        raise UserError(f"no official code has the router {name}; --to safetensors has")
    if isinstance(network, SiT):  # its velocity is the negative of ours, beside unused channels
        for key in ("final_layer.linear.weight", "final_layer.linear.bias"):
            rows = -state[key].unflatten(0, (network.patch_size**2, -1))
            state[key] = torch.cat([rows, torch.zeros_like(rows)], 1).flatten(0, 1)
    path = out / "model.pt"
    with telling_of_disk(path), replacing(path) as part, part.open("wb") as file:
        torch.save(state, file)
    return [out / "model.pt"]


def masks_of(router: Router) -> Tensor | None:
    """Returns the masks bool [blocks, tasks, channels] of a router.

    None for a router without fixed masks, and where the blocks differ in width.
    """
    every = [router.table(block) for block in range(router.blocks)]
    tables = [table for table in every if table is not None]
    if len(tables) < len(every) or len({table.shape for table in tables}) != 1:
        return None
    return torch.stack([table.cpu() for table in tables])
