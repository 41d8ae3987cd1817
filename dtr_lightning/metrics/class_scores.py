"""The inception score: how sure a classifier is of each image, and how varied its answers are.

torchmetrics shuffles the images between the splits, with the global RNG; ADM keeps their order.
"""

__all__ = ["ClassifierScore", "inception_score"]

import torch
from torch import Tensor
from torchmetrics import Metric


def inception_score(logits: Tensor, split: int = 5000) -> tuple[float, float]:
    """Returns mean and standard deviation over the splits of exp(E_x KL(p(y|x) || p(y))).

    logits (N, classes); a split is that many rows, in their order (ADM: 5,000), the last may be
    shorter (Salimans et al. 2016, Section 4). Computed in float64.
    """
    values = []
    for part in logits.split(split):
        probs = part.double().softmax(1)
        values.append(_score(probs.mean(0), torch.special.entr(probs).sum(1).mean()))
    values = torch.stack(values)
    return values.mean().item(), values.std(unbiased=False).item()


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
