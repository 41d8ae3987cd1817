"""Networks of others, which are read and never trained: where they lie, and which they are."""

__all__ = ["is_folder", "weights_digest"]

from hashlib import sha256
from pathlib import Path

import torch
from torch import nn

from dtr_lightning.errors import UserError


def is_folder(path: str, what: str, where: str = "") -> bool:
    """Returns whether a network is read from a folder, or else by its name on the hub.

    UserError, with a hint where to say it, for what is neither.
    """
    local = Path(path).is_dir()
    if not local and (Path(path).is_absolute() or path.count("/") != 1):
        raise UserError(f"the folder {path} of the {what} does not exist{where}")
    return local


def weights_digest(network: nn.Module, *more: bytes) -> str:
    """Returns twelve hexadecimal digits of a network's weights, and of more that makes it."""
    state, hashed = network.state_dict(), sha256()
    for name in sorted(state):
        hashed.update(name.encode())
        hashed.update(state[name].cpu().contiguous().view(torch.uint8).numpy())
    for each in more:
        hashed.update(each)
    return hashed.hexdigest()[:12]
