"""Text conditions: captions of a label as token features."""

__all__ = ["Captions"]

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Captions(nn.Module, ABC):
    """Gives the captions of labels as features of text tokens, `null` (L_text, C_text) for none."""

    null: Tensor

    @abstractmethod
    def forward(self, labels: Tensor, which: Tensor | None = None) -> Tensor:
        """Returns tokens float32 (N, L_text, C_text) of labels (N,).

        which (N,) is the number of the caption, modulo how many the label has; None draws it from
        the global generator.
        """
