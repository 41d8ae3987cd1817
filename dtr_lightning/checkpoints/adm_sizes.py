"""The sizes of a guided-diffusion U-Net, read from the names and shapes of its weights.

Stage i of the encoder is `input_blocks.i`: the stem, then of each level R residual blocks and, but
at the last level, what halves the image. So there are L (R + 1) stages for L levels, as many as
the decoder has, whose stages R, 2 R + 1, ... double the image.
"""

__all__ = ["adm_options"]

from collections.abc import Mapping
from typing import Any

from dtr_lightning.checkpoints.layouts import Checkpoint
from dtr_lightning.errors import UserError

Options = dict[str, Any]
HEAD = 64  # channels of a head in all published models
# The official code's widths for an image size.
IMAGE_SIZES = {
    (1, 2, 3, 4): 64,
    (1, 1, 2, 3, 4): 128,
    (1, 1, 2, 2, 4, 4): 256,
    (0.5, 1, 1, 2, 2, 4, 4): 512,
}


def adm_options(checkpoint: Checkpoint, given: Mapping[str, str]) -> tuple[Options, list[str]]:
    """Returns the options of an ADM, its data and diffusion, and what of them is assumed.

    UserError for what the file does not say and nothing can be assumed for: image size or heads.
    """
    state, path, assumed = checkpoint.state, checkpoint.path, []
    try:
        sizes = _sizes(checkpoint)
    except (KeyError, ZeroDivisionError) as error:
        raise UserError(f"{path} is no whole U-Net of guided-diffusion: no {error}") from error
    options = {f"model.{key}": value for key, value in sizes.items()}
    attending = {state[n].shape[1] for n in state if n.endswith(".qkv.weight")}
    if not {"model.num_heads", "model.num_head_channels"} & given.keys():
        if any(width % HEAD for width in attending):
            raise UserError(
                f"{path} does not say its attention heads: give --model.num_head_channels N, which "
                f"divides {', '.join(map(str, sorted(attending)))}, or --model.num_heads N"
            )
        options["model.num_head_channels"] = HEAD
        assumed.append(f"model.num_head_channels {HEAD}")
    small = IMAGE_SIZES.get(tuple(sizes["channel_mult"]))
    if "data.image_size" in given:
        image_size = int(given["data.image_size"])
    elif small:
        image_size = small
        assumed.append(f"data.image_size {small}")
    else:
        raise UserError(f"{path} does not say its image size: give --data.image_size N")
    if "model.use_new_attention_order" not in given:
        options["model.use_new_attention_order"] = image_size == 64
        assumed.append(f"model.use_new_attention_order {str(image_size == 64).lower()}")
    schedule = "cosine" if image_size == 64 else "linear"
    if "diffusion.schedule" not in given:
        assumed.append(f"diffusion.schedule {schedule}")
    channels = state["input_blocks.0.0.weight"].shape[1]
    outputs = state["out.2.weight"].shape[0]
    if outputs not in (channels, 2 * channels):
        raise UserError(f"{path}: {outputs} output channels fit no {channels} input channels")
    options |= {
        "model": "ADM",
        "data": "NoImages",
        "data.in_channels": channels,
        "data.image_size": image_size,
        "data.num_classes": len(state["label_emb.weight"]) if "label_emb.weight" in state else 1,
        "diffusion": "Diffusion",
        "diffusion.schedule": schedule,
        "diffusion.variance": "learned_range" if outputs == 2 * channels else "fixed_large",
        "sampler": "DDPM",
    }
    return options, assumed


def _sizes(checkpoint: Checkpoint) -> Options:
    state = checkpoint.state
    names = state.keys()

    def stages(part: str) -> set[int]:
        return {int(name.split(".")[1]) for name in names if name.startswith(f"{part}.")}

    outputs, inputs = len(stages("output_blocks")), stages("input_blocks")
    growing = [
        (i, kind)
        for i in range(outputs)
        for layer in (1, 2)
        for kind in ("conv.weight", "in_layers.0.weight")
        if f"output_blocks.{i}.{layer}.{kind}" in names
    ]
    if growing:
        per_level = growing[0][0] + 1
    else:  # layers without weights leave a gap, and with one level there are none
        gaps = sorted(set(range(max(inputs))) - inputs)
        per_level = gaps[0] if gaps else outputs
    firsts = range(1, outputs, per_level)  # the first residual block of each level
    width = state["time_embed.0.weight"].shape[1]
    blocks = [f"input_blocks.{i}" for i in firsts]
    widths = [state[f"{block}.0.in_layers.2.weight"].shape[0] for block in blocks]
    multipliers = [w // width if w % width == 0 else w / width for w in widths]
    attending = [2**i for i, block in enumerate(blocks) if f"{block}.1.qkv.weight" in names]
    scale_shift = state[f"{blocks[0]}.0.emb_layers.1.weight"].shape[0] == 2 * widths[0]
    return {
        "model_channels": width,
        "num_res_blocks": per_level - 1,
        "attention_resolutions": attending,
        "channel_mult": multipliers,
        "use_scale_shift_norm": scale_shift,
        "resblock_updown": bool(growing) and growing[0][1].startswith("in_layers"),
        "conv_resample": bool(growing) or len(blocks) == 1,
    }
