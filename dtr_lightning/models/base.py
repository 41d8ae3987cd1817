"""What every denoising network has in common."""

__all__ = ["Denoiser"]

from abc import ABC, abstractmethod

from torch import Tensor, nn

from dtr_lightning.routers import NoRouting, Router


class Denoiser(nn.Module, ABC):
    """A network that predicts from (x_t, t, y); a subclass is a choice of `--model` by its name.

    Data give `input_size`, `in_channels` and `num_classes`; the diffusion gives `learn_sigma`; the
    router comes from its own axis. `num_classes` 1 is unconditional. With `class_dropout_prob` > 0
    the index `num_classes` is the null class, which guidance needs; labels are dropped by the
    training step, never in here.
    """

    num_classes: int
    class_dropout_prob: float
    router: Router

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Returns the prediction (N, C_out, H, W) for x (N, C_in, H, W), original t (N,), y (N,).

        C_out is 2 C_in with a learned variance (its half comes last), else C_in. No side effects.
        """

    @property
    def null_class(self) -> int | None:
        """The label index that stands for no label, None where the network was given none."""
        return self.num_classes if self.class_dropout_prob > 0 else None

    @staticmethod
    def router_or_none(router: Router | None) -> Router:
        """Returns the router, or plain NoRouting for None."""
        return NoRouting() if router is None else router
