"""Names of diffusers' DiTTransformer2DModel, and ours.

Its network differs from the official one in two constants: its time embedding has frequencies
10000^(-i / 127) in place of 10000^(-i / 128) (`downscale_freq_shift`), and the norm before its MLP
adds 1e-5 in place of 1e-6 to the variance (`norm_eps`). Weights are the same.
"""

__all__ = ["from_diffusers", "to_diffusers"]

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtr_lightning.errors import UserError

# In a block, theirs and ours; attention's q, k, v are three layers there.
BLOCK = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
# Every block has a copy of these.
EMBEDDERS = {
    "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
}
TOP = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
NAME = re.compile(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)")


def from_diffusers(
    path: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Returns weights under our names, without the fixed positions, which it does not store.

    UserError where it is no DiT as published: another activation, norms with parameters, embedders
    that differ between blocks.
    """
    valid = {"activation_fn": "gelu-approximate", "norm_type": "ada_norm_zero"}
    for key, value in valid.items():
        if config.get(key, value) != value:
            raise UserError(f"{path}: {key} {config[key]!r} is not read; valid: {value}")
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        top, _, kind = name.rpartition(".")
        block = NAME.fullmatch(name)
        if top in TOP:
            renamed[f"{TOP[top]}.{kind}"] = value
        elif block and block[2] in EMBEDDERS:
            ours = f"{EMBEDDERS[block[2]]}.{block[3]}"
            if not torch.equal(renamed.setdefault(ours, value), value):
                raise UserError(f"{path}: {name} differs from that of another block")
        elif block and block[2] == QKV[0]:
            parts = [f"transformer_blocks.{block[1]}.{part}.{block[3]}" for part in QKV]
            if missing := [part for part in parts if part not in state]:
                raise UserError(f"{path} has no {missing[0]}")
            renamed[f"blocks.{block[1]}.attn.qkv.{block[3]}"] = torch.cat([state[p] for p in parts])
        elif block and block[2] in BLOCK:
            renamed[f"blocks.{block[1]}.{BLOCK[block[2]]}.{block[3]}"] = value
        elif not (block and block[2] in QKV) and name != "pos_embed.pos_embed":
            raise UserError(f"{path}: {name} is no weight of a DiT as published")
    return renamed


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of a DiT under diffusers' names; positions are not stored there."""
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    renamed: dict[str, Tensor] = {}

    def take(theirs: str, ours: str) -> None:
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in state:
                renamed[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]

    for theirs, ours in TOP.items():
        take(theirs, ours)
    for i in range(depth):
        block = f"transformer_blocks.{i}"
        for theirs, ours in BLOCK.items():
            take(f"{block}.{theirs}", f"blocks.{i}.{ours}")
        for theirs, ours in EMBEDDERS.items():
            take(f"{block}.{theirs}", ours)
        for kind in ("weight", "bias"):
            parts = state[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)
            renamed |= {f"{block}.{q}.{kind}": part for q, part in zip(QKV, parts, strict=True)}
    return {name: value.contiguous() for name, value in renamed.items()}
