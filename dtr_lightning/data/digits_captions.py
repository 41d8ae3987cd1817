"""The digits with captions: a small table of wordings and fixed features of its words."""

__all__ = ["DigitsCaptions", "TinyCaptions"]

from collections.abc import Sequence

import torch
from torch import Tensor

from dtr_lightning.data.captions import Captions
from dtr_lightning.data.digits import Digits
from dtr_lightning.errors import UserError, choices

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDINGS = (
    "a handwritten {name}",
    "the digit {numeral}",
    "a drawing of the number {name}",
    "{numeral} written by hand",
    "a small picture of the digit {name}",
    "the number {numeral} as a drawing",
)


class TinyCaptions(Captions):
    """Captions of the ten digits, six wordings each, as tokens of up to 8 words.

    A token is a fixed random vector of its word plus one of its position, with unit variance; a
    text is filled up with the empty word. No parameters: a stand-in for a text encoder.
    """

    length = 8

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.texts = [
            [wording.format(name=name, numeral=label) for wording in WORDINGS]
            for label, name in enumerate(NAMES)
        ]
        known = {word for texts in self.texts for text in texts for word in text.split()}
        self.vocabulary = {word: i for i, word in enumerate(["", *sorted(known)])}
        generator = torch.Generator().manual_seed(0)
        words = torch.randn(len(self.vocabulary), channels, generator=generator)
        positions = torch.randn(self.length, channels, generator=generator)
        table = torch.stack([self.indices(texts) for texts in self.texts])
        self.register_buffer("words", words / 2**0.5, persistent=False)
        self.register_buffer("positions", positions / 2**0.5, persistent=False)
        self.register_buffer("table", table, persistent=False)  # (labels, wordings, L_text)
        self.register_buffer("null", self.encode([""])[0], persistent=False)

    def draw(self, n: int, device: torch.device) -> Tensor:
        """Draws the numbers int64 (n,) of wordings."""
        return torch.randint(self.table.shape[1], (n,), device=device)

    def forward(self, labels: Tensor, which: Tensor) -> Tensor:
        """Returns tokens float32 (N, L_text, C_text) of wordings which (N,) of labels (N,)."""
        return self._tokens(self.table[labels, which % self.table.shape[1]])

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Returns tokens float32 (N, L_text, C_text) of texts; UserError as `indices`."""
        return self._tokens(self.indices(texts).to(self.words.device))

    def indices(self, texts: Sequence[str]) -> Tensor:
        """Returns the numbers int64 (N, L_text) of the words of texts, 0 after the last word.

        Raises UserError for a text of too many words, or a word that is in no caption.
        """
        rows = torch.zeros(len(texts), self.length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            words = text.lower().split()
            if len(words) > self.length:
                raise UserError(f"a caption has at most {self.length} words; got {text!r}")
            for i, word in enumerate(words):
                if word not in self.vocabulary:
                    raise choices("word in a caption", word, filter(None, self.vocabulary))
                row[i] = self.vocabulary[word]
        return rows

    def _tokens(self, indices: Tensor) -> Tensor:
        return self.words[indices] + self.positions


class DigitsCaptions(Digits):
    """The digits, each told by a caption ("a handwritten three") in place of its label.

    Args:
        batch_size: images per step, all ranks together.
    """

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__(batch_size)
        self.captions = TinyCaptions()
