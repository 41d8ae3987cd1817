"""Text conditions: captions of a label as token features."""

__all__ = ["Captions"]

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dtr_lightning.errors import UserError
from dtr_lightning.seeds import seed_of


class Captions(nn.Module, ABC):
    """Gives the captions of labels as features of text tokens, `null` (L_text, C_text) for none.

    A subclass gives `null`, a buffer, `draw` and `forward`; `encode` too where prompts are taken.
    """

    null: Tensor

    @abstractmethod
    def draw(self, n: int, device: torch.device) -> Tensor:
        """Draws the numbers int64 (n,) of captions from the global generator."""

    @abstractmethod
    def forward(self, labels: Tensor, which: Tensor) -> Tensor:
        """Returns tokens float32 (N, L_text, C_text) of labels (N,).

        which (N,) is the number of the caption, modulo how many the label has.
        """

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Returns tokens float32 (N, L_text, C_text) of any texts.

        UserError for texts that it cannot encode: by default for all.
        """
        raise UserError(f"{type(self).__name__} encodes no prompts; sample without them")

    def sample_labels(self, n: int) -> Tensor | None:
        """Returns the labels int64 (n,) of samples 0 to n - 1, where the captions fix them."""
        return None

    def sample_numbers(self, seed: int, indices: Sequence[int]) -> Tensor:
        """Returns the numbers int64 (n,) of the captions of samples with these indices."""
        return torch.tensor([seed_of(seed, i) >> 1 for i in indices])

    def describe(self) -> dict[str, Any]:
        """Returns what a protocol states of the captions."""
        return {}
