"""The options of the trainer: Lightning's names, with the types and texts of what is used here."""

__all__ = ["OF_FIT", "TRAINER_OPTIONS"]

from typing import Any, Literal

# Options of the trainer that fit.py acts on in place of Lightning; without them a run is as before.
OF_FIT = ("max_time", "profiler")
# Lightning's own types and texts would name what cannot be used here.
TRAINER_OPTIONS: dict[str, tuple[Any, Any, str]] = {  # type, default, help
    "accelerator": (str, "auto", "what to train on: auto, cpu, gpu (cuda, mps)"),
    "strategy": (str, "auto", "of several processes: ddp, or auto"),
    "devices": (list[int] | str | int, "auto", "number of devices, a list of theirs, or auto"),
    "num_nodes": (int, 1, "machines that train together"),
    "precision": (
        Literal["32-true", "bf16-mixed"] | None,
        None,
        "of the network's products; null: 32-true",
    ),
    "max_steps": (int, 400_000, "training steps, of each expert if there are several"),
    "max_time": (
        str | None,
        None,
        "DAYS:HOURS:MINUTES:SECONDS after which a run saves and ends with exit code 130, as by a "
        "signal; the same command goes on; null: none",
    ),
    "accumulate_grad_batches": (
        int,
        1,
        "parts that a batch is computed in, one after the other, to save memory; changes no number "
        "but by rounding",
    ),
    "log_every_n_steps": (int, 50, "training steps between two records of the loss"),
    "gradient_clip_val": (
        int | float | None,
        None,
        "norm that the network's gradient is clipped to, > 0; null: not",
    ),
    "deterministic": (
        bool | Literal["warn"] | None,
        None,
        "whether PyTorch may use deterministic algorithms only; warn: where it can; null: not",
    ),
    "profiler": (
        Literal["pytorch"] | None,
        None,
        "pytorch: a trace of a few early steps, into profile/ of the run; null: none",
    ),
    "benchmark": (bool | None, None, "whether cuDNN looks for its fastest algorithms at the start"),
}
