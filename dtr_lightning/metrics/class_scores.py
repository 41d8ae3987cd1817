"""The inception score: how sure a classifier is of each image, and how varied its answers are.

torchmetrics shuffles the images between the splits, with the global RNG; ADM keeps their order.
"""

__all__ = ["ClassifierScore", "InceptionScore", "inception_score"]

import torch
from torch import Tensor
from torchmetrics import Metric


class InceptionScore:
    """Mean over splits of exp(E_x KL(p(y|x) || p(y))), a split after the other as images come.

    A split is that many images, in their order (ADM: 5,000), the last may be shorter (Salimans et
    al. 2016, Section 4). Computed in float64 sums; of a split that is full its score alone is kept.
    """

    def __init__(self, split: int = 5000) -> None:
        self.split, self.full = split, []
        self.part: ClassifierScore | None = None  # of the split that is not full

    def update(self, logits: Tensor) -> None:
        """Takes logits (N, classes)."""
        while len(logits):
            self.part = self.part or ClassifierScore(logits.shape[1]).to(logits.device)
            room = self.split - int(self.part.n)
            self.part.update(logits[:room])
            if int(self.part.n) == self.split:
                self.full.append(self.part.compute())
                self.part = None
            logits = logits[room:]

    def compute(self) -> tuple[float, float]:
        """Returns mean and standard deviation over the splits."""
        last = [self.part.compute()] if self.part else []
        values = torch.tensor([*self.full, *last], dtype=torch.float64)
        return values.mean().item(), values.std(unbiased=False).item()


def inception_score(logits: Tensor, split: int = 5000) -> tuple[float, float]:
    """Returns mean and standard deviation of the InceptionScore of logits (N, classes)."""
    score = InceptionScore(split)
    score.update(logits)
    return score.compute()


def _score(mean: Tensor, entropy: Tensor) -> Tensor:
    """Returns the score from p(y) (classes,) and the mean entropy of p(y|x): KL is the gap."""
    return (torch.special.entr(mean).sum() - entropy).exp()


class ClassifierScore(Metric):
    """The inception score's formula over all images at once, for a classifier of any classes."""

    full_state_update = False

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("probs", torch.zeros(classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("entropy", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor) -> None:
        """Takes logits (N, classes)."""
        probs = logits.double().softmax(1)
        self.probs += probs.sum(0)
        self.entropy += torch.special.entr(probs).sum()
        self.n += len(logits)

    def compute(self) -> float:
        """Returns the score, 1 to the number of classes."""
        return _score(self.probs / self.n, self.entropy / self.n).item()
