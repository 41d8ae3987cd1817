"""What a person's own class gives, against what it is to give."""

__all__ = ["expect", "is_own"]

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from dtr_lightning.errors import UserError

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def is_own(part: object) -> bool:
    """Returns whether an object is of a person's own class, not of a shipped one."""
    return not type(part).__module__.startswith("dtr_lightning.")


def expect(
    source: str,
    given: Any,
    shape: tuple[int | None, ...],
    names: str,
    dtypes: Collection[torch.dtype] = FLOATS,
) -> None:
    """Raises UserError, naming its source, for what is no tensor of this shape and dtype.

    A length of None may be any; `names` calls the axes, as in "tasks, channels".
    """
    fits = isinstance(given, Tensor) and given.dtype in dtypes and given.ndim == len(shape)
    if fits and all(n in (None, size) for n, size in zip(shape, given.shape, strict=True)):
        return
    kind = "float" if dtypes is FLOATS else " or ".join(map(_name, dtypes))
    axes = ", ".join("any" if n is None else str(n) for n in shape)
    called = f" ({names})" if names else ""
    wanted = f"a {kind} tensor of shape [{axes}]{called}"
    raise UserError(f"{source} gives {_described(given)}; expected {wanted}")


def _described(given: Any) -> str:
    if isinstance(given, Tensor):
        return f"{_name(given.dtype)} of shape {list(given.shape)}"
    return f"{type(given).__module__}.{type(given).__name__}".removeprefix("builtins.")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
