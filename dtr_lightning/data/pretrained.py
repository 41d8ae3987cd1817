"""Networks of others, which are read and never trained: where they lie, and which they are."""

__all__ = ["check_digest", "reading", "weights_digest"]

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from dtr_lightning.errors import UserError

# What diffusers and transformers raise for files that are damaged, or not there.
DAMAGED = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


@contextmanager
def reading(path: str, what: str, hint: str = "") -> Iterator[bool]:
    """Yields whether a network is read from a folder, or else by its name on the hub.

    UserError, with a hint where to say it, for what is neither, or cannot be read.
    """
    local = Path(path).is_dir()
    if not local and (Path(path).is_absolute() or path.count("/") != 1):
        raise UserError(f"the folder {path} of the {what} does not exist{hint}")
    try:
        yield local
    except DAMAGED as error:
        line = str(error).strip().partition("\n")[0]
        offline = "" if local else "; where there is no network, give a local folder"
        raise UserError(f"no {what} at {path}: {line}{offline}{hint}") from error


def check_digest(digest: str, wanted: str, path: str, what: str, made: str, hint: str) -> None:
    """Raises UserError where a network is not the one that something was `made` with."""
    if digest != wanted:
        raise UserError(
            f"the {what} at {path} has the digest {digest}; these {made} are of {wanted}{hint}"
        )


def weights_digest(network: nn.Module, *more: bytes) -> str:
    """Returns twelve hexadecimal digits of a network's weights, and of more that makes it."""
    state, hashed = network.state_dict(), sha256()
    for name in sorted(state):
        hashed.update(name.encode())
        hashed.update(state[name].cpu().contiguous().view(torch.uint8).numpy())
    for each in more:
        hashed.update(each)
    return hashed.hexdigest()[:12]
