"""The card of an exported network: what it is, how it was scored, how it is loaded."""

__all__ = ["card"]

from collections.abc import Mapping
from typing import Any

from dtr_lightning.diffusion import Process
from dtr_lightning.models import Denoiser
from dtr_lightning.routing import NoRouting, Router
from dtr_lightning.rundir.naming import flatten
from dtr_lightning.rundir.run import Run

SCORES = ("score", "floor", "kid", "precision", "recall", "accuracy", "copies", "loss")
LOADING = {
    "safetensors": """\
`model.safetensors` has the weights under the names of facebookresearch/DiT or
openai/guided-diffusion, and the options of the run in its header; `masks.npy`, where it is there,
has the masks of the router, bool [blocks, tasks, channels].

    python import_checkpoint.py model.safetensors --out RUN""",
    "official": """\
`model.pt` is a state_dict in the official code's layout, for `torch.load(..., weights_only=True)`;
masks, where there are some, are the buffers `blocks.*.routing._unit_mapping`. The code must be told
the sizes below.

    python import_checkpoint.py model.pt --out RUN""",
    "diffusers": """\
Attention's `qkv` is split into `to_q`, `to_k` and `to_v`; every block holds a copy of the
embedders.
Two constants of diffusers are not those of the official network. `norm_eps`, 1e-5 there, is 1e-6 in
`config.json`. `downscale_freq_shift`, 1 there, has to be set to 0 after loading:

    from diffusers import DiTTransformer2DModel
    model = DiTTransformer2DModel.from_pretrained(".")
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0

Without that the outputs are those of another network. `DiTPipeline` does not do it.

    python import_checkpoint.py . --out RUN""",
}


def card(
    network: Denoiser,
    process: Process,
    run: Run,
    config: Mapping[str, Any],
    step: int,
    to: str,
) -> str:
    """Returns the model card, in Markdown, of a network of a run at a step."""
    data, flat = run.meta["data"], flatten(config)
    parameters = sum(p.numel() for p in network.parameters())
    size = f"{data['in_channels']} x {data['image_size']} x {data['image_size']}"
    classes = f"{data['num_classes']:,} classes" if data["num_classes"] > 1 else "unconditional"
    null = ", and a null class for guidance" if network.has_null else ""
    if text := data.get("text"):
        classes = f"told by captions, features of the text encoder {text['digest']}"
        null = ", and those of the empty text for guidance" if network.has_null else ""
    about = [
        f"- network: {type(network).__name__}, {parameters:,} parameters",
        f"- data: {flat['data']}, {size}, {classes}{null}",
        f"- {_options(flat, 'model')}",
        f"- diffusion: {type(process).__name__}, predicts {process.prediction}; "
        f"{_options(flat, 'diffusion')}",
        f"- training: {step:,} steps, seed {flat['seed']}; {_options(flat, 'loss_weight')}; "
        f"{_options(flat, 'module')}",
        "- weights: the average (EMA), float32",
    ]
    if imported := run.meta.get("imported"):
        about.append(f"- imported from {imported['file']} ({imported['kind']})")
    return "\n".join(
        [
            f"# {run.path.resolve().name}",
            "",
            "\n".join(about),
            "",
            "## Router",
            "",
            _router(network.router, flat),
            "",
            "## Scores",
            "",
            _scores(run),
            "",
            "## Loading",
            "",
            LOADING[to],
            "",
            "## Licence",
            "",
            "To be filled in: the licence of these weights, which that of the training images and",
            "of any weights that training started from may limit.",
            "",
        ]
    )


def _options(flat: Mapping[str, Any], axis: str) -> str:
    own = {key.partition(".")[2]: v for key, v in flat.items() if key.startswith(f"{axis}.")}
    text = ", ".join(f"{key} {value}" for key, value in own.items() if value is not None)
    return f"{axis}: {' '.join(filter(None, [str(flat.get(axis, '')), text]))}"


def _router(router: Router, flat: Mapping[str, Any]) -> str:
    if isinstance(router, NoRouting):
        return "None (NoRouting): every block reads all channels at every task."
    lines = [f"{_options(flat, 'router')}; T = {router.tasks} tasks, {router.blocks} blocks."]
    table = router.table(0)
    if table is None:
        return "\n".join([*lines, "It has no fixed masks: what a block reads is learned."])
    lines += ["", "Channels that the first block reads:", "", "| task | of | reads | first |"]
    lines.append("|---|---|---|---|")
    for task in sorted({0, router.tasks // 4, router.tasks // 2, router.tasks - 1}):
        row = table[task].int()
        lines.append(f"| {task} | {len(row)} | {int(row.sum())} | {int(row.argmax())} |")
    return "\n".join(lines)


def _scores(run: Run) -> str:
    results = run.results or {}
    if results.get("score") is None:
        return "Not scored."
    rows = [f"| {key} | {results[key]:.6g} |" for key in SCORES if results.get(key) is not None]
    protocol = results.get("protocol") or {}
    text = ", ".join(f"{key} {value}" for key, value in protocol.items() if value is not None)
    notes = [f"- note: {note}" for note in results.get("notes") or ()]
    name, n = results.get("score_name", "score"), results.get("n", 0)
    return "\n".join(
        [
            f"`{name}` of {n:,} samples at step {results.get('steps', 0):,}.",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            f"Protocol: {text}.",
            *(["", *notes] if notes else []),
        ]
    )
