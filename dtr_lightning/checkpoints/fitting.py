"""From weights by name into a network: all of them fit, or a line says which does not."""

__all__ = ["fit_weights"]

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from dtr_lightning.errors import UserError


def fit_weights(
    network: nn.Module,
    state: Mapping[str, Tensor],
    path: Path,
    partial: bool = False,
    optional: Collection[str] = (),
) -> list[str]:
    """Loads weights into a network; returns a line for each kind of what partial loading left out.

    UserError, before anything is loaded, for the first parameter that is absent or of another
    shape; with `partial` that is left out instead. Names in `optional` may be absent. Of a network
    without memory, on the meta device, it is a check.
    """
    expected = network.state_dict()
    needed = [name for name in expected if name not in optional]
    wrong = [n for n in needed if n in state and state[n].shape != expected[n].shape]
    missing = [name for name in needed if name not in state]
    extra = [name for name in state if name not in expected]
    if (wrong or missing or extra) and not partial:
        name = (wrong or missing or extra)[0]
        shapes = [_shape(of.get(name)) for of in (state, expected)]
        others = len(wrong) + len(missing) + len(extra) - 1
        raise UserError(
            f"{name} is {shapes[0]} in {path} and {shapes[1]} in the network"
            + (f"; {others} other parameters differ too" if others else "")
        )
    taken = {n: w for n, w in state.items() if n in expected and n not in wrong}
    if not taken:
        raise UserError(f"{path} holds none of the network's parameters")
    if not any(parameter.is_meta for parameter in network.parameters()):
        network.load_state_dict(taken, strict=False)
    return [
        f"{what}: {_few(names)}"
        for what, names in (
            (f"{len(wrong)} parameters of another shape keep their initial values", wrong),
            (f"{len(missing)} parameters that the file has not keep theirs", missing),
            (f"{len(extra)} parameters of the file are in no part of the network", extra),
        )
        if names
    ]


def _shape(weight: Tensor | None) -> str:
    return "absent" if weight is None else str(tuple(weight.shape))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
