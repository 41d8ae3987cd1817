"""Reading the weights of a run, which may be several experts, from its checkpoints."""

__all__ = ["are_finite", "checkpoint_names", "load_average", "read_checkpoint", "refuse_shorter"]

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dtr_lightning.errors import UserError, choices
from dtr_lightning.models import RangeExperts
from dtr_lightning.rundir.run import Run
from dtr_lightning.training.module import DiffusionModule


def read_checkpoint(
    path: Path, module: nn.Module | None = None, prefix: str = ""
) -> dict[str, Any]:
    """Returns a checkpoint as tensors and plain values; UserError if it is anything else.

    Nothing in the file is ever executed (weights_only). With a module the weights whose names start
    with the prefix must fit that.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights = {name: w.shape for name, w in _below(prefix, content["state_dict"]).items()}
        assert isinstance(content["global_step"], int)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: the run has no checkpoint yet") from None
    except Exception as error:  # torch raises half a dozen types for a bad file
        reason = (str(error).strip().splitlines() or ["unreadable"])[0][:160]
        raise UserError(
            f"checkpoint {path} is truncated or no plain checkpoint, and was not loaded "
            f"({reason}); remove it to start the run anew"
        ) from error
    if module and weights != {name: w.shape for name, w in module.state_dict().items()}:
        raise UserError(f"checkpoint {path} holds the weights of another network")
    return content


def refuse_shorter(run: Run, steps: int) -> None:
    """Raises UserError if a run, or an expert of it, is trained for more steps already."""
    for file in [run.last, *run.path.glob("experts/*/ckpt/last.ckpt")]:
        if file.exists() and (reached := read_checkpoint(file)["global_step"]) > steps:
            raise UserError(
                f"{run.path} is at step {reached:,} already, past --trainer.max_steps {steps:,}; "
                f"give {reached} or more, or choose another --out"
            )


def are_finite(run: Run, module: nn.Module) -> bool:
    """Returns whether the parameters in a run's last checkpoint are finite, average and raw."""
    content = read_checkpoint(run.last)
    names = [name for name, _ in module.named_parameters()]
    states = content["state_dict"], content["current_model_state"]
    return all(state[name].isfinite().all() for state in states for name in names)


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): w for n, w in state.items() if n.startswith(prefix)}


def _networks(run: Run, module: DiffusionModule) -> list[tuple[Run, nn.Module]]:
    """Returns the network of a run, or those of its experts, and the run that trained each."""
    if not isinstance(module.model, RangeExperts):
        return [(run, module.model)]
    runs = map(run.expert, module.model.intervals)
    return list(zip(runs, module.model.networks, strict=True))


def checkpoint_names(run: Run, module: DiffusionModule) -> list[str]:
    """Returns the checkpoints that a run has, of every expert; UserError if it has none."""
    names = []
    for own, _ in _networks(run, module):
        names.append({file.stem for file in own.checkpoints.glob("*.ckpt")})
        if not names[-1]:
            raise UserError(f"{own.path} has no checkpoint yet")
    return sorted(set.intersection(*names))


def load_average(run: Run, module: DiffusionModule, name: str = "last") -> int:
    """Loads a run's average weights, those of all experts if it has any; returns their step.

    UserError for a checkpoint that is not there, and for experts that are not equally far.
    """
    if name not in (valid := checkpoint_names(run, module)):
        raise choices(f"checkpoint of {run.path}", name, valid)
    steps = []
    for own, network in _networks(run, module):
        content = read_checkpoint(own.checkpoints / f"{name}.ckpt", network, "model.")
        network.load_state_dict(_below("model.", content["state_dict"]))
        steps.append(content["global_step"])
    if len(set(steps)) > 1:
        reached = ", ".join(map(str, steps))
        milestones = ", ".join(n for n in valid if n != name) or "none yet"
        raise UserError(
            f"the experts of {run.path} are at different steps: {reached}; go on with the training"
            f", or choose a milestone that all have ({milestones})"
        )
    return steps[0]
