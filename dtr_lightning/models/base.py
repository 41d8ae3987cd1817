"""What every denoising network has in common."""

__all__ = ["Denoiser", "evaluation_mode"]

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dtr_lightning.errors import UserError
from dtr_lightning.routing import NoRouting, Router


class Denoiser(nn.Module, ABC):
    """A network that predicts from (x_t, t, y); a subclass is a choice of `--model` by its name.

    The experiment gives sizes and classes of the data, the output's channels, the router and the
    number T of tasks (`tasks`, for `Router.bind`), each under the name that the backbone's own
    publication has (`input_size` or `image_size`). With
    `num_classes` 1 it is unconditional. With `class_dropout_prob` > 0 the index `num_classes` is
    the null class, which guidance needs; labels are dropped by the training step, never in here.
    """

    takes_text: ClassVar[bool] = False  # tokens (N, L_text, C_text) in place of labels y (N,)
    num_classes: int
    class_dropout_prob: float
    router: Router

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_switch_names)

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Returns the prediction (N, C_out, H, W) for x (N, C_in, H, W), original t (N,), y (N,).

        C_out is 2 C_in with a learned variance (its half comes last), else C_in. No side effects.
        """

    @abstractmethod
    def embed(self, t: Tensor) -> Tensor:
        """Returns the embedding (N, C) of timesteps t (N,), which routers see: no label in it."""

    def checkpointed(self) -> Sequence[nn.Module]:
        """Returns the blocks that `use_checkpoint` computes again, one at a time; none by default.

        Their memory is counted apart.
        """
        return ()

    def compile_blocks(self, **options: Any) -> None:
        """Compiles each block for itself: alike as they are, the first one's graph serves all.

        UserError for a network whose blocks are not alike.
        """
        raise UserError(
            f"module.compile blocks is for networks of blocks that are alike, as DiT's; "
            f"{type(self).__name__} takes true or false"
        )

    @property
    def has_null(self) -> bool:
        """Whether the network knows a condition that stands for none, which guidance needs."""
        return self.class_dropout_prob > 0

    def null(self, y: Tensor) -> Tensor:
        """Returns the condition that stands for none, shaped like y: the label `num_classes`."""
        return torch.full_like(y, self.num_classes)

    @staticmethod
    def router_or_none(router: Router | None) -> Router:
        """Returns the router, or plain NoRouting for None."""
        return NoRouting() if router is None else router


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Measures in evaluation mode, in whichever mode a module is, and gives each part its own back.

    Every measurement goes through this: dropout would make it a random one.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _switch_names(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Reads Switch-DiT's checkpoints: routers at the top, beside two tables that are derived."""
    top = f"{prefix}routers."
    for name in [name for name in state if name.startswith(top)]:
        state[f"{prefix}router.{name.removeprefix(prefix)}"] = state.pop(name)
        for derived in ("full_time", "prior._unit_mapping"):
            state.pop(prefix + derived, None)
