"""Routers with fixed masks: DTR and R-TR (Sections 4.2 and 4.3), and any table given."""

__all__ = ["DTR", "RTR", "FixedMasks", "MaskRouter"]

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dtr_lightning import masks
from dtr_lightning.errors import UserError
from dtr_lightning.routers.base import Route, Router


class MaskRouter(Router):
    """Multiplies what a block reads by row t of a table; a subclass gives the table.

    Equal tables are stored once (bool, non-persistent: masks are derived, not learned), and each is
    read once per step.
    """

    @abstractmethod
    def mask(self, channels: int, block: int) -> Tensor:
        """Returns the table bool[tasks, channels] of a block."""

    def key(self, channels: int, block: int) -> object:
        """Returns what a table depends on; blocks of equal key share one. Default: the width."""
        return channels

    def build(self, widths: Sequence[int], emb_channels: int, channel_dim: int = -1) -> None:
        """Makes the distinct tables and remembers which block reads which."""
        super().build(widths, emb_channels, channel_dim)
        self.channel_dim = channel_dim
        keys = [self.key(channels, block) for block, channels in enumerate(widths)]
        distinct = list(dict.fromkeys(keys))
        self.table_of_block = [distinct.index(key) for key in keys]
        for i, key in enumerate(distinct):
            block = keys.index(key)
            table = self.mask(widths[block], block)
            assert table.shape == (self.tasks, widths[block]) and table.dtype == torch.bool
            self.register_buffer(f"table_{i}", table, persistent=False)
        self.num_tables = len(distinct)

    def table(self, block: int) -> Tensor:
        """Returns the mask table bool[tasks, channels] of a block."""
        return self.get_buffer(f"table_{self.table_of_block[block]}")

    def forward(self, t: Tensor, emb: Tensor) -> list[Route]:
        """Returns z -> m_t * z for every block, the mask in the dtype of the features."""
        routes = [
            self._route(self.get_buffer(f"table_{i}")[t], emb) for i in range(self.num_tables)
        ]
        return [routes[i] for i in self.table_of_block]

    def _route(self, mask: Tensor, emb: Tensor) -> Route:
        mask = mask.to(emb.dtype)  # (N, C)

        def route(z: Tensor) -> Tensor:
            shape = [mask.shape[0]] + [1] * (z.ndim - 1)
            shape[self.channel_dim] = mask.shape[1]
            return z * mask.view(shape).to(z.dtype)

        return route


class DTR(MaskRouter):
    """Denoising task routing: one window that slides over the channels as t grows (Section 4.3).

    alpha > 0 shapes the shift over time, beta in (0, 1] is the share of active channels; `linspace`
    is the official code's window, `eq4` the text's. The table is the same in all blocks.
    """

    def __init__(
        self,
        alpha: float = 4.0,
        beta: float = 0.8,
        formula: Literal["linspace", "eq4"] = "linspace",
        tasks: int = 1000,
    ) -> None:
        super().__init__(tasks)
        self.alpha, self.beta, self.formula = alpha, beta, formula
        masks.dtr(1, 1000, alpha, beta, formula)  # a wrong value is told here, not in the model

    def mask(self, channels: int, block: int) -> Tensor:
        """Returns DTR's table."""
        return masks.dtr(self.tasks, channels, self.alpha, self.beta, self.formula)


class RTR(MaskRouter):
    """Random task routing: a random set of channels for every task (Section 4.2).

    Masks are drawn per task and per block, as in the official code, or once for all blocks when
    `shared`. They depend on `seed` only, which is the run's.
    """

    def __init__(
        self, beta: float = 0.8, shared: bool = False, seed: int = 0, tasks: int = 1000
    ) -> None:
        super().__init__(tasks)
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
    """Routes by tables from a `.npy` file: bool or 0/1 [blocks, tasks, channels]."""

    def __init__(self, path: str, tasks: int = 1000) -> None:
        super().__init__(tasks)
        self.path = path
        try:
            tables = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"masks cannot be read from {path}: {error}") from error
        if tables.ndim != 3 or tables.shape[1] != tasks:
            raise UserError(
                f"{path} holds an array of shape {tables.shape}; "
                f"needed: [blocks, {tasks} tasks, channels]"
            )
        self.tables = torch.from_numpy(tables).bool()

    def key(self, channels: int, block: int) -> object:
        """Returns the block: every block has its own table."""
        return block

    def mask(self, channels: int, block: int) -> Tensor:
        """Returns the given table; a UserError if the model's block is of another size."""
        if block >= len(self.tables) or self.tables.shape[2] != channels:
            blocks, _, width = self.tables.shape
            raise UserError(
                f"{self.path} holds masks for {blocks} blocks of {width} channels; "
                f"the model's block {block} reads {channels} channels"
            )
        return self.tables[block]
