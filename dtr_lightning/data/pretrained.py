"""Networks of others, which are read and never trained: where they lie, and which they are."""

__all__ = ["check_digest", "reading", "weights_digest"]

import logging
import warnings
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
        with _no_hub_messages():
            yield local
    except DAMAGED as error:
        line = str(error).strip().partition("\n")[0].rstrip(".")
        if not local:
            line = (
                f"no such folder, and not to be had from the Hugging Face hub ({line}); where "
                "there is no network, give a local folder"
            )
        raise UserError(f"no {what} at {path}: {line}{hint}") from error


@contextmanager
def _no_hub_messages() -> Iterator[None]:
    """Keeps the hub's client from telling of every try: what came of them is told in one line."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="huggingface_hub")
            yield
    finally:
        logger.setLevel(level)


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
