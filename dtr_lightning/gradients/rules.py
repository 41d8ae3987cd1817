"""The algebra of multi-task gradients: PCGrad's projections and Nash-MTL's weights."""

__all__ = ["gram", "nash_weights", "project_conflicts"]

import torch
from torch import Tensor

RIDGE = 1e-12  # keeps Nash weights finite where gradients cancel; far below float32's noise
CHUNK = 2**20  # parameters that are float64 at a time


def gram(grads: Tensor) -> Tensor:
    """Returns the inner products float64[K, K] of gradients (K, D), on the CPU."""
    total = torch.zeros(len(grads), len(grads), dtype=torch.float64, device=grads.device)
    for chunk in grads.split(CHUNK, dim=1):
        chunk = chunk.double()
        total += chunk @ chunk.T
    return total.cpu()


def project_conflicts(
    grads: Tensor, generator: torch.Generator | None = None, orders: Tensor | None = None
) -> Tensor:
    """Returns the sum (D,) of gradients (K, D) freed of conflicts (Yu et al. 2020, Algorithm 1).

    Each g_i loses its part along every original g_j with which it conflicts, <g_i, g_j> < 0 at that
    moment. The order of j is random, or row i of orders int64[K, K], and includes i as in the
    official code. Every g_i stays a combination of the originals, so their inner products suffice.
    """
    clusters = len(grads)
    if orders is None:
        orders = torch.stack([torch.randperm(clusters, generator=generator) for _ in grads])
    products = gram(grads)
    coefficients = torch.eye(clusters, dtype=torch.float64)
    for own, order in zip(coefficients, orders.tolist(), strict=True):
        for j in order:
            product = own @ products[j]
            if product < 0:
                own[j] -= product / products[j, j]
    return coefficients.sum(0).to(grads) @ grads


def nash_weights(gram: Tensor) -> Tensor:
    """Returns a > 0, float64[K], with G a = 1 / a for inner products G [K, K] (Navon et al. 2022).

    So the combined gradient has length sqrt(K) whatever the scale of the losses. It is the minimum
    of a'Ga / 2 - sum log a, found by damped Newton steps on gradients of length one. A zero
    gradient takes no part and gets the mean weight of the others; where gradients cancel (sum a g =
    0, no solution) a ridge bounds the weights; all are 1 where G is not finite or zero.
    """
    gram = gram.double().cpu()
    weights = torch.ones(len(gram), dtype=torch.float64)
    lengths = gram.diagonal().sqrt()
    some = lengths > 0
    if not gram.isfinite().all() or not some.any():
        return weights
    cosines = gram[some][:, some] / lengths[some].outer(lengths[some])
    weights[some] = _nash_of_unit_gradients(cosines) / lengths[some]
    weights[~some] = weights[some].mean()
    return weights


def _nash_of_unit_gradients(cosines: Tensor) -> Tensor:
    a = torch.ones(len(cosines), dtype=torch.float64)
    ridged = cosines + RIDGE * torch.eye(len(a), dtype=torch.float64)
    for _ in range(200):
        slope = ridged @ a - 1 / a
        step = torch.linalg.solve(ridged + torch.diag(a**-2), slope)
        decrement = (slope @ step).clamp(min=0).sqrt()
        a = a - step / (1 + decrement)  # the objective is self-concordant: a stays positive
        if decrement < 1e-8:
            break
    return a
