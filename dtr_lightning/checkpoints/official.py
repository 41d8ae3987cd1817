"""The config that belongs to a checkpoint: read from shapes, and from the official code's defaults.

What neither says is assumed, and said in a line, or asked for.
"""

__all__ = ["Asked", "official_options"]

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dtr_lightning.checkpoints.adm_sizes import adm_options
from dtr_lightning.checkpoints.layouts import Checkpoint
from dtr_lightning.errors import UserError
from dtr_lightning.routing import masks

Options = dict[str, Any]
HEAD = 64  # channels of a head in S, B and L
SIZES = {(384, 12): ("DiT_S", 6), (768, 12): ("DiT_B", 12), (1024, 24): ("DiT_L", 16)}
SIZES |= {(1152, 28): ("DiT_XL", 16)}
ALPHAS = (4.0, 1.0, 2.0, 8.0, 0.5)  # of a DTR table; the official code has 4
# of all kinds; a network of latents is known by its four channels
COMMON: Options = {"module.lr": 1e-4, "module.ema_decay": 0.9999, "features": "TimmFeatures"}
COMMON |= {"evaluation.n": 50_000, "evaluation.labels": "balanced", "sampler.steps": 250}


class Asked(UserError):
    """What a file does not say and nothing can be assumed for; the message names the option."""


def official_options(
    checkpoint: Checkpoint, given: Mapping[str, str]
) -> tuple[Options, list[str], Tensor | None]:
    """Returns the options of a checkpoint's config, what of them is assumed, and its masks.

    given: the options that a person gave, as text; they decide where the file says nothing. Masks
    bool [blocks, tasks, channels] are those of a FixedMasks router, None where a formula makes
    them. UserError (Asked) where the file does not say and nothing can be assumed.
    """
    if checkpoint.kind == "guided-diffusion":
        sizes, assumed = adm_options(checkpoint, given)
    else:
        sizes, assumed = _dit_options(checkpoint, given)
    router, tables = _router(checkpoint, assumed)
    options = COMMON | sizes | router
    if checkpoint.steps is not None:
        options["trainer.max_steps"] = checkpoint.steps
    elif "trainer.max_steps" not in given:
        assumed.append("trainer.max_steps 400000")
    return options, assumed, tables


def _dit_options(checkpoint: Checkpoint, given: Mapping[str, str]) -> tuple[Options, list[str]]:
    state, stated, assumed = checkpoint.state, checkpoint.options, []
    path, kind = checkpoint.path, checkpoint.kind

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise UserError(f"{path} has no {name}: it is no whole DiT")
        return tuple(state[name].shape)

    hidden, channels, patch, _ = shape("x_embedder.proj.weight")
    depth = sum(name.endswith(".attn.qkv.weight") for name in state)
    outputs = shape("final_layer.linear.weight")[0] // patch**2
    if outputs not in (channels, 2 * channels):
        raise UserError(f"{path}: {outputs} output channels fit no {channels} input channels")
    if depth and shape("blocks.0.adaLN_modulation.1.weight")[0] != 6 * hidden:
        raise UserError(f"{path}: its blocks have no adaLN-Zero as DiT's")
    mlp = shape("blocks.0.mlp.fc1.weight")[0] / hidden
    model, heads = _model(checkpoint, given, hidden, depth, assumed)
    if kind == "sit" or heads is not None or mlp != 4:
        name = "SiT" if kind == "sit" else "DiT"
        heads = heads or SIZES[hidden, depth][1]
        sizes = {"hidden_size": hidden, "depth": depth, "num_heads": heads, "mlp_ratio": mlp}
    else:
        name, sizes = model, {}
    sizes["patch_size"] = patch
    rows = shape("y_embedder.embedding_table.weight")[0]
    classes = _whole(checkpoint, given, "data.num_classes", "num_classes", "num_embeds_ada_norm")
    if classes is None:
        classes = max(1, rows - 1)
        assumed += [f"data.num_classes {classes} and a null class"] if rows > 1 else []
    null = rows == classes + 1
    if null and (classes == 1 or stated.get("_null_class") is False):
        table = "y_embedder.embedding_table.weight"  # a null row that nothing reads
        state[table], null = state[table][:classes], False
    if not null and classes > 1:
        sizes["class_dropout_prob"] = 0.0
    if "pos_embed" in state:
        image_size = round(shape("pos_embed")[1] ** 0.5) * patch
    elif size := _whole(checkpoint, given, "data.image_size", "sample_size"):
        image_size = size
    else:
        raise Asked(f"{path} does not say its image size: give --data.image_size N")
    latents = channels == 4
    first3 = kind in ("dit", "sit", "diffusers") and channels > 3
    options: Options = {
        "data": "NoImages",
        "data.in_channels": channels,
        "data.image_size": image_size,
        "data.num_classes": classes,
        "model": name,
        **{f"model.{key}": value for key, value in sizes.items()},
        "evaluation.guidance": 1.5 if null else 1.0,
        "evaluation.guidance_channels": "first3" if first3 else "all",
    }
    if kind == "sit":
        options |= {"diffusion": "FlowMatching", "sampler": "Euler"}
    else:
        told_schedule = str(stated.get("schedule_name"))
        schedule = {"squaredcos_cap_v2": "cosine"}.get(told_schedule, told_schedule)
        if schedule not in ("cosine", "linear"):
            schedule = "cosine" if kind in ("dtr", "switch-dit") else "linear"
            assumed += [f"diffusion.schedule {schedule}"]
        variance = "learned_range" if outputs == 2 * channels else "fixed_large"
        options |= {"diffusion": "Diffusion", "diffusion.schedule": schedule}
        options |= {"diffusion.variance": variance, "sampler": "DDPM"}
    options["sampler.clip"] = not latents
    return options, assumed


def _whole(
    checkpoint: Checkpoint, given: Mapping[str, str], option: str, *stated: str
) -> int | None:
    """Returns a whole number: an option that a person gave, or what the file says of it."""
    if option in given:
        try:
            return int(given[option])
        except ValueError:
            raise UserError(f"--{option} takes a whole number; got {given[option]!r}") from None
    numbers = (checkpoint.options.get(key) for key in stated)
    return next((n for n in numbers if isinstance(n, int) and n > 0), None)


def _model(
    checkpoint: Checkpoint, given: Mapping[str, str], hidden: int, depth: int, assumed: list[str]
) -> tuple[str, int | None]:
    """Returns a name of a published size, or DiT and the number of its heads."""
    name, usual = SIZES.get((hidden, depth), ("DiT", None))
    heads = _whole(checkpoint, given, "model.num_heads", "num_attention_heads")
    if heads is not None:
        return (name, None) if heads == usual else ("DiT", heads)
    if usual is not None:
        return name, None
    if given.get("model", "DiT") not in ("DiT", "SiT"):
        return "DiT", 1  # a size that is named has its heads
    if hidden % HEAD:
        valid = [n for n in range(1, hidden + 1) if hidden % n == 0 and hidden // n >= 4]
        raise Asked(
            f"{checkpoint.path} does not say its number of attention heads: give --model.num_heads "
            f"N; valid for {hidden} channels: {', '.join(map(str, valid))}"
        )
    assumed.append(f"model.num_heads {hidden // HEAD}")
    return "DiT", hidden // HEAD


def _router(checkpoint: Checkpoint, assumed: list[str]) -> tuple[Options, Tensor | None]:
    """Returns the router of a checkpoint, and its masks if no formula of ours makes them."""
    if checkpoint.kind == "switch-dit":
        return _switch(checkpoint, assumed), None
    tables = checkpoint.masks
    if tables is None or tables.all():
        return {"router": "NoRouting"}, None
    tasks, channels = tables.shape[1:]
    diffusion = {"diffusion.T": tasks} if tasks != 1000 else {}
    active = int(tables[0, 0].sum())
    beta = next(
        (round(active / channels, n) for n in range(1, 8)
         if masks.active_channels(channels, round(active / channels, n)) == active),
        active / channels,
    )  # fmt: skip
    if (tables == tables[:1]).all():
        for alpha in ALPHAS:
            if masks.dtr(tasks, channels, alpha, beta).equal(tables[0]):
                return {
                    "router": "DTR", "router.alpha": alpha, "router.beta": beta, **diffusion
                }, None  # fmt: skip
    return {"router": "FixedMasks", **diffusion}, tables


def _switch(checkpoint: Checkpoint, assumed: list[str]) -> Options:
    state = checkpoint.state
    experts = state["router.routers.0.experts.w"].shape[0]
    blocks = sum(name.endswith(".experts.w") for name in state)
    if checkpoint.prior is not None:
        k = round(checkpoint.prior[0].sum().item() / blocks)
    else:
        k = min(2, experts)
        assumed.append(f"router.k {k}")
    return {"router": "Switch", "router.experts": experts, "router.k": k}
