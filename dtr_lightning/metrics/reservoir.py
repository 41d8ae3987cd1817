"""A bounded choice among any number of rows: features of images, or their thumbnails."""

__all__ = ["LIMIT", "BoundedRows"]

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

LIMIT = 10_000  # images of either side, as ADM's reference batches hold


class BoundedRows(Metric):
    """Keeps at most `limit` rows (D,): those whose global index has the smallest hash.

    Which rows these are is a function of the seed and the indices alone: not of the order, the
    batches or the processes in which they come. It is a uniform sample without replacement
    (bottom-k sampling, Cohen and Kaplan 2007). Iterating yields what is kept, in parts (n, D).
    """

    full_state_update = False
    rows: list[Tensor]
    index: list[Tensor]

    def __init__(self, limit: int = LIMIT, seed: int = 0) -> None:
        super().__init__(compute_with_cache=False)
        self.limit, self.seed, self.given = limit, seed, 0
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("index", [], dist_reduce_fx="cat")

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.rows)

    def __len__(self) -> int:
        return sum(map(len, self.rows))

    def update(self, rows: Tensor, index: Tensor | None = None) -> None:
        """Takes rows (N, D) with their indices int64 (N,), by default those that come next."""
        if index is None:
            index = torch.arange(self.given, self.given + len(rows))
        self.given += len(rows)
        index = index.to(rows.device)
        if room := self.limit - len(self):
            self.rows.append(rows[:room])
            self.index.append(index[:room])
            rows, index = rows[room:], index[room:]
            if len(self) == self.limit:  # from now on rows are replaced where they lie
                self.rows, self.index = [torch.cat(self.rows)], [torch.cat(self.index)]
        if not len(rows):
            return
        (kept,), (known,) = self.rows, self.index
        stays = self._chosen(torch.cat([known, index]))
        leave, come = ~stays[: self.limit], stays[self.limit :]
        kept[leave], known[leave] = rows[come], index[come]

    def compute(self) -> Tensor:
        """Returns the rows (n, D) of all processes that are kept, n <= limit, by their index."""
        return self.by_index()[0]

    def by_index(self) -> tuple[Tensor, Tensor]:
        """Returns the rows that `compute` does, and their indices (n,); inside `sync_context`."""
        rows, index = dim_zero_cat(self.rows), dim_zero_cat(self.index)
        if len(index) > self.limit:
            stays = self._chosen(index)
            rows, index = rows[stays], index[stays]
        order = index.argsort(stable=True)
        return rows[order], index[order]

    def reset(self) -> None:
        """Forgets all rows."""
        super().reset()
        self.given = 0

    def _chosen(self, index: Tensor) -> Tensor:
        """Returns bool (n,): which `limit` of the indices (n,) have the smallest hashes."""
        keys = _mixed(index.cpu().numpy().astype(np.uint64) + _mixed(np.array([self.seed])))
        chosen = np.zeros(len(keys), dtype=bool)
        chosen[np.argpartition(keys, self.limit - 1)[: self.limit]] = True
        return torch.from_numpy(chosen).to(index.device)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Returns a hash uint64 of each number: SplitMix64 (Steele, Lea and Flood 2014, Figure 17)."""
    z = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
