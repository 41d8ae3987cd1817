"""A window on any rising schedule, of which DTR's is one."""

__all__ = ["FreeWindow"]

from torch import Tensor

from dtr_lightning import masks
from dtr_lightning.routers.static import WindowRouter


class FreeWindow(WindowRouter):
    """A window of C_beta channels that starts at o_t = round(d s((t / (T - 1))^alpha)).

    d = C - C_beta; s runs linearly through the knots, equally spaced over [0, 1].

    Args:
        knots: two or more numbers in [0, 1] that do not fall; [0, 1] is DTR.
        alpha: power of time before the knots, > 0.
        beta: share of active channels, in (0, 1].
    """

    def __init__(
        self,
        knots: tuple[float, ...] = (0.0, 1.0),
        alpha: float = 1.0,
        beta: float = 0.8,
    ) -> None:
        super().__init__()
        self.knots, self.alpha, self.beta = tuple(knots), alpha, beta
        masks.free_window(1, 1000, self.knots, alpha, beta)

    def bounds(self, t: Tensor, channels: int) -> tuple[Tensor, Tensor]:
        """Returns the windows of tasks t."""
        return masks.bounds(t, self.tasks, channels, self.alpha, self.beta, knots=self.knots)
