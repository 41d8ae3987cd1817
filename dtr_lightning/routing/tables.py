"""Static routers: DTR and R-TR (Sections 4.2, 4.3), CDTR, ERCDT (Appendix F), tables given."""

__all__ = [
    "CDTR",
    "DTR",
    "ERCDT",
    "RTR",
    "FixedMasks",
    "FreeWindow",
    "MaskRouter",
    "WindowRouter",
    "masked",
]

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from dtr_lightning.errors import UserError
from dtr_lightning.expect import expect
from dtr_lightning.routing import masks
from dtr_lightning.routing.router import Route, Router


def masked(mask: Tensor, channel_dim: int) -> Route:
    """Returns z -> m * z for masks m (N, C), in the dtype of the features z."""

    def route(z: Tensor) -> Tensor:
        shape = [mask.shape[0]] + [1] * (z.ndim - 1)
        shape[channel_dim] = mask.shape[1]
        return z * mask.view(shape).to(z.dtype)

    return route


class MaskRouter(Router):
    """Multiplies what a block reads by row t of a table; a subclass gives the table.

    Equal tables are stored once, all side by side in one buffer (bool, non-persistent: masks are
    derived, not learned), which is read once per step. A fractional t reads the nearest task's row.
    """

    masks_only = True

    @property
    def height(self) -> int:
        """The number of rows of a table: T, one per task."""
        return self.tasks

    @abstractmethod
    def mask(self, channels: int, block: int) -> Tensor:
        """Returns the table bool[tasks, channels] of a block."""

    def key(self, channels: int, block: int) -> object:
        """Returns what a table depends on; blocks of equal key share one. Default: the width."""
        return channels

    def bind(
        self, tasks: int, widths: Sequence[int], emb_channels: int, channel_dim: int = -1
    ) -> None:
        """Makes the distinct tables and remembers which block reads which."""
        super().bind(tasks, widths, emb_channels, channel_dim)
        self.channel_dim = channel_dim
        keys = [self.key(channels, block) for block, channels in enumerate(widths)]
        distinct = list(dict.fromkeys(keys))
        self.table_of_block = [distinct.index(key) for key in keys]
        readers = [keys.index(key) for key in distinct]  # the first block of each table
        self.widths = [widths[block] for block in readers]
        tables = [self.mask(widths[block], block) for block in readers]
        for table, channels in zip(tables, self.widths, strict=True):
            self._check(table, channels)
        self.register_buffer("tables", torch.cat(tables, 1), persistent=False)

    def _check(self, table: Tensor, channels: int) -> None:
        source = f"{type(self).__name__}.mask"
        expect(source, table, (self.height, channels), "tasks, channels", (torch.bool,))
        if table.device.type not in ("cpu", "meta"):
            raise UserError(f"{source} gives a table on {table.device}; expected one on the CPU")
        if not table.is_meta and (empty := ~table.any(1)).any():
            task = int(empty.int().argmax())
            raise UserError(f"{source} leaves task {task} no channel; expected one or more a row")

    def table(self, block: int) -> Tensor:
        """Returns the mask table bool[tasks, channels] of a block, a view of the stored one."""
        return self.tables.split(self.widths, 1)[self.table_of_block[block]]

    def rows(self, t: Tensor) -> Tensor:
        """Returns the masks of tasks t, those of all tables side by side: bool (N, sum of C)."""
        return self.tables.index_select(0, t.round().long() if t.is_floating_point() else t)

    def forward(self, t: Tensor, emb: Tensor) -> list[Route]:
        """Returns z -> m_t * z for every block, the mask in the dtype of the features."""
        # what blocks read is float32 under autocast, whatever the embedding is by then
        mixed = not emb.is_meta and torch.is_autocast_enabled(emb.device.type)
        rows = self.rows(t).to(torch.float32 if mixed else emb.dtype)
        routes = [masked(mask, self.channel_dim) for mask in rows.split(self.widths, 1)]
        return [routes[i] for i in self.table_of_block]


class WindowRouter(MaskRouter):
    """Reads a window of channels whose place is a formula of t; the same in all blocks.

    For a fractional t the window is computed, not looked up.
    """

    @abstractmethod
    def bounds(self, t: Tensor, channels: int) -> tuple[Tensor, Tensor]:
        """Returns the windows [start, stop) of tasks t (N,): int64, each (N,)."""

    def mask(self, channels: int, block: int) -> Tensor:
        """Returns the windows of all tasks."""
        return masks.window(*self.bounds(torch.arange(self.tasks), channels), channels)

    def rows(self, t: Tensor) -> Tensor:
        """Returns the masks of tasks t, by formula where t is fractional."""
        if not t.is_floating_point():
            return super().rows(t)
        return torch.cat([masks.window(*self.bounds(t, c), c) for c in self.widths], 1)


class DTR(WindowRouter):
    """Denoising task routing: one window that slides over the channels as t grows (Section 4.3).

    Args:
        alpha: shape of the shift over time, > 0; above 1 noisy tasks get more of it. 1 is the
            control "affinity only": all tasks get an equal share.
        beta: share of active channels, in (0, 1]; 1 is no routing.
        formula: linspace is the official code's window, eq4 that of the text (Eq. 4).
    """

    def __init__(
        self,
        alpha: float = 4.0,
        beta: float = 0.8,
        formula: masks.Formula = "linspace",
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.formula = alpha, beta, formula
        masks.dtr(1, 1000, alpha, beta, formula)  # a wrong value is told here, not in the model

    def bounds(self, t: Tensor, channels: int) -> tuple[Tensor, Tensor]:
        """Returns DTR's windows of tasks t."""
        return masks.bounds(t, self.tasks, channels, self.alpha, self.beta, self.formula)


class RTR(MaskRouter):
    """Random task routing: a random set of channels for every task (Section 4.2).

    Masks depend on the run's seed only.

    Args:
        beta: share of active channels, in (0, 1].
        shared: true draws one table for all blocks, false one for each (the official code).
    """

    def __init__(self, beta: float = 0.8, shared: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.beta, self.shared, self.seed = beta, shared, seed
        masks.active_channels(1000, beta)

    def key(self, channels: int, block: int) -> object:
        """Returns the width, and the block unless masks are shared."""
        return channels if self.shared else (channels, block)

    def mask(self, channels: int, block: int) -> Tensor:
        """Returns random masks from the block's own generator."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + block)
        return masks.random(self.tasks, channels, self.beta, generator)


class FixedMasks(MaskRouter):
    """Routes by tables that are given.

    Args:
        path: a .npy file, bool or 0/1 [blocks, tasks, channels].
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = path
        try:
            given = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise UserError(f"masks cannot be read from {path}: {error}") from error
        if not isinstance(given, np.ndarray):
            raise UserError(f"{path} does not hold one array; save it by numpy.save")
        if given.ndim != 3:
            raise UserError(
                f"{path} holds an array of shape {given.shape}; needed: [blocks, tasks, channels]"
            )
        if given.dtype.kind not in "buif" or not np.isin(given, (0, 1)).all():
            raise UserError(f"{path} holds values other than 0 and 1")
        self.given = torch.from_numpy(given.astype(bool))

    def key(self, channels: int, block: int) -> object:
        """Returns the block: every block has its own table."""
        return block

    def mask(self, channels: int, block: int) -> Tensor:
        """Returns the given table; a UserError if the model's block is of another size."""
        blocks, tasks, width = self.given.shape
        if (blocks, tasks, width) != (self.blocks, self.tasks, channels):
            raise UserError(
                f"{self.path} holds masks for {blocks} blocks of {width} channels and {tasks} "
                f"tasks; the model has {self.blocks} blocks, of which block {block} reads "
                f"{channels} channels, and {self.tasks} tasks"
            )
        return self.given[block]


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
