"""Routers that give all tasks of a cluster one mask: CDTR and ERCDT (Appendix F, Table 8)."""

__all__ = ["CDTR", "ERCDT"]

from torch import Tensor

from dtr_lightning import masks
from dtr_lightning.routers.static import MaskRouter


class CDTR(MaskRouter):
    """Clustered DTR: DTR's window moves once per cluster of tasks (Appendix F).

    The K clusters are contiguous and of equal size; K is at most the number of tasks.
    """

    def __init__(self, alpha: float = 4.0, beta: float = 0.8, clusters: int = 8) -> None:
        super().__init__()
        self.alpha, self.beta, self.clusters = alpha, beta, clusters
        masks.dtr(1, 1000, alpha, beta)

    def mask(self, channels: int, block: int) -> Tensor:
        """Returns clustered DTR's table."""
        return masks.cdtr(self.tasks, channels, self.alpha, self.beta, self.clusters)


class ERCDT(MaskRouter):
    """Explicit routing: half of the channels for all tasks, the rest split among K clusters.

    Each segment of the second half is read by its cluster alone, the same in all blocks (Appendix
    F). K is at most half of the channels, and at most the number of tasks.
    """

    def __init__(self, clusters: int = 8) -> None:
        super().__init__()
        self.clusters = clusters

    def mask(self, channels: int, block: int) -> Tensor:
        """Returns the explicit routes; a UserError if K is too large for the width."""
        return masks.ercdt(self.tasks, channels, self.clusters)
