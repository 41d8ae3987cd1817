"""Routers that give all tasks of a cluster one mask: CDTR and ERCDT (Appendix F, Table 8)."""

__all__ = ["CDTR", "ERCDT"]

from torch import Tensor

from dtr_lightning import masks
from dtr_lightning.routers.static import MaskRouter


class CDTR(MaskRouter):
    """Clustered DTR: DTR's window moves once per cluster of tasks (Appendix F).

    Args:
        alpha: shape of the shift over clusters, > 0; as DTR's.
        beta: share of active channels, in (0, 1].
        clusters: number K of contiguous, equal clusters of tasks, 1 to T.
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
    F).

    Args:
        clusters: number K of contiguous, equal clusters of tasks, 1 to half of the channels.
    """

    def __init__(self, clusters: int = 8) -> None:
        super().__init__()
        self.clusters = clusters

    def mask(self, channels: int, block: int) -> Tensor:
        """Returns the explicit routes; a UserError if K is too large for the width."""
        return masks.ercdt(self.tasks, channels, self.clusters)
