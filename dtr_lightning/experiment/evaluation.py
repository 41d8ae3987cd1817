"""Evaluation of a network: samples with a stated protocol, their score, and the held-out loss.

Sample i depends on (seed, i) alone, not on batches or the number of GPUs: its start noise, its
class (see `draw_labels`), and the noise of its steps. Samples of two runs are therefore paired.
"""

__all__ = ["Report", "draw_labels", "evaluate", "sample", "silent"]

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torchmetrics import SumMetric
from torchmetrics.utilities.distributed import gather_all_tensors

from dtr_lightning.config.evaluation import EvaluationConfig
from dtr_lightning.data import Data
from dtr_lightning.diffusion.samplers import IndexedNoise, Sampler, guided
from dtr_lightning.errors import Diverged, UserError
from dtr_lightning.metrics.scorer import Scorer
from dtr_lightning.models import Denoiser, evaluation_mode
from dtr_lightning.seeds import seed_of
from dtr_lightning.training.module import DiffusionModule

MEASURED = {"score", "kid", "kid_std", "precision", "recall", "classifier_score"}
MEASURED |= {"accuracy", "copies"}

Report = Callable[[int], None]  # is told the number of network evaluations of single images


def silent(images: int) -> None:
    """Tells nobody."""


def check_guidance(model: Denoiser, guidance: float) -> None:
    """Raises UserError for guidance of a model that knows no null condition."""
    if guidance != 1 and not model.has_null:
        raise UserError(
            f"guidance {guidance:g} needs a conditional model trained with label dropout "
            "(class_dropout_prob > 0); this one (images without class folders have no classes) "
            "allows only --evaluation.guidance 1"
        )


def draw_labels(data: Data, protocol: EvaluationConfig, n: int) -> Tensor:
    """Returns the labels int64 (n,) of samples 0 to n - 1, as the protocol has them.

    Classes come in turn, but sample i is of one that is furthest behind its share of i + 1 samples,
    to a tenth of a sample. So n labels are the first of more, and never far from the proportions.
    """
    balanced = protocol.labels == "balanced"
    counts = np.array([1] * data.num_classes if balanced else data.class_counts())
    total, last = counts.sum(), -1
    behind, labels = np.zeros_like(counts), np.empty(n, np.int64)
    for i in range(n):
        behind += counts  # in samples: by behind / total
        furthest = np.flatnonzero((behind > 0) & (behind >= behind.max() - total / 10))
        last = labels[i] = furthest[np.searchsorted(furthest, last + 1) % len(furthest)]
        behind[last] -= total
    return torch.from_numpy(labels)


def sample(
    module: DiffusionModule,
    data: Data,
    sampler: Sampler,
    labels: Tensor,
    indices: Sequence[int],
    protocol: EvaluationConfig,
    report: Report = silent,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields batches of images uint8 (n, C, H, W) and labels (n,) of samples with these indices.

    labels (N,) belong to indices one by one; `data` are those that the network was trained on.
    Diverged where the network draws anything but finite numbers.
    """
    for x, y in _draw(module, sampler, labels, indices, data.shape, protocol, report):
        if not x.isfinite().all():
            raise Diverged("the pixels that the network draws are not finite")
        yield data.codec.decode(x, protocol.decode_precision), y


@torch.no_grad()
def _draw(
    module: DiffusionModule,
    sampler: Sampler,
    labels: Tensor,
    indices: Sequence[int],
    shape: tuple[int, int, int],
    protocol: EvaluationConfig,
    report: Report,
) -> Iterator[tuple[Tensor, Tensor]]:
    check_guidance(module.model, protocol.guidance)
    device = module.device
    network = guided(module.model, protocol.guidance, module.model.null, protocol.guidance_channels)
    for first in range(0, len(indices), protocol.batch_size):
        chunk = indices[first : first + protocol.batch_size]
        y = labels[first : first + protocol.batch_size].to(device)
        which = torch.tensor([seed_of(protocol.seed, i) >> 1 for i in chunk], device=device)
        noise = IndexedNoise(protocol.seed, chunk, shape)
        cost = len(chunk) * (1 if protocol.guidance == 1 else 2)
        with evaluation_mode(module):
            condition = module.condition(y, which)
            x = sampler(
                lambda x, t, c=condition: network(x, t, c),
                noise().to(device),
                module.diffusion,
                lambda noise=noise: noise().to(device),
                progress=lambda cost=cost: report(cost),
            )
        yield x, y


def evaluate(
    module: DiffusionModule,
    data: Data,
    sampler: Sampler,
    scorer: Scorer,
    protocol: EvaluationConfig,
    n: int,
    keep: int = 0,
    rank: int = 0,
    world: int = 1,
    report: Report = silent,
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Returns the score of n samples, and the first `keep` images with their labels.

    Every rank samples its contiguous share; metrics and images are gathered over ranks. A network
    that draws anything but finite pixels has diverged: its score is nan.
    """
    indices = range(n * rank // world, n * (rank + 1) // world)
    labels = draw_labels(data, protocol, n)[indices.start : indices.stop]
    scorer.reset()
    scorer.next_index = indices.start
    kept, mine = [], max(0, min(keep, indices.stop) - indices.start)
    broken = SumMetric(nan_strategy="error").to(scorer.device)
    for x, y in _draw(module, sampler, labels, indices, data.shape, protocol, report):
        broken.update((~x.isfinite()).sum().to(scorer.device))
        images = data.codec.decode(x, protocol.decode_precision)
        scorer.update(images, y)
        kept.append(images[: mine - sum(map(len, kept))].cpu())
    images = torch.cat([torch.empty(0, *data.image_shape, dtype=torch.uint8), *kept])
    images, labels = (_of_all_ranks(x, scorer.device) for x in (images, labels[:mine]))
    scores = scorer.compute() | scorer.describe()
    if broken.compute():
        scores |= dict.fromkeys(MEASURED & scores.keys(), math.nan)
    return scores, images, labels


def _of_all_ranks(rows: Tensor, device: torch.device) -> Tensor:
    """Returns the rows of all processes, in their order."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    return torch.cat(gather_all_tensors(rows.to(device))).cpu()
