"""Text conditions: captions of a label as token features."""

__all__ = ["Captions"]

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Captions(nn.Module, ABC):
    """Gives the captions of labels as features of text tokens, `null` (L_text, C_text) for none."""

    null: Tensor

    @abstractmethod
    def draw(self, n: int, device: torch.device) -> Tensor:
        """Draws the numbers int64 (n,) of captions from the global generator."""

    @abstractmethod
    def forward(self, labels: Tensor, which: Tensor) -> Tensor:
        """Returns tokens float32 (N, L_text, C_text) of labels (N,).

        which (N,) is the number of the caption, modulo how many the label has.
        """
