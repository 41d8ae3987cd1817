"""Evaluation of a network: samples with a stated protocol, their score, and the held-out loss.

Sample i depends on (seed, i) alone, not on batches or the number of GPUs: its start noise, its
class (see `draw_labels`), and the noise of its steps. Samples of two runs are therefore paired.
"""

__all__ = [
    "Report",
    "check_precision",
    "draw_labels",
    "draws",
    "evaluate",
    "sample",
    "score",
    "silent",
]

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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
from dtr_lightning.training.module import DiffusionModule

MEASURED = {"score", "kid", "kid_std", "precision", "recall", "classifier_score"}
MEASURED |= {"accuracy", "copies"}

Report = Callable[[int], None]  # is told the number of network evaluations of single images


def silent(images: int) -> None:
    """Does nothing: for a caller that shows no progress."""


def check_guidance(model: Denoiser, guidance: float) -> None:
    """Raises UserError for guidance of a model that knows no null condition."""
    if guidance != 1 and not model.has_null:
        if model.num_classes == 1 and not model.takes_text:
            why = "the images have no classes (folders of images: no class folders)"
        else:
            why = "train with --model.class_dropout_prob 0.1, say"
        raise UserError(
            f"guidance {guidance:g} needs a conditional model that was trained with label dropout: "
            f"{why}; without, --evaluation.guidance 1 is valid"
        )


def check_precision(precision: str, device: torch.device) -> None:
    """Raises UserError for a precision that the device does not have."""
    if precision == "tf32" and device.type != "cuda":
        raise UserError(
            f"evaluation.precision tf32 is of NVIDIA GPUs; on {device.type} give float32 or bf16"
        )


@contextmanager
def _precision(precision: str, device: torch.device) -> Iterator[Callable[..., Tensor]]:
    """Yields what calls a network on its inputs in a precision: (network, x, t, y) -> output.

    float32 is the whole format, tf32 has 10 bits of mantissa in products and convolutions, bf16 is
    mixed precision. PyTorch's own default is tf32 in convolutions and float32 in products.
    """

    def call(network: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = network(*inputs)
        return output.float() if precision == "bf16" else output

    if device.type != "cuda":
        yield call
        return
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = precision == "tf32"
    try:
        yield call
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def draw_labels(data: Data, protocol: EvaluationConfig, n: int) -> Tensor:
    """Returns the labels int64 (n,) of samples 0 to n - 1, as the protocol has them.

    Classes come in turn, but sample i is of one that is furthest behind its share of i + 1 samples,
    to a tenth of a sample. So n labels are the first of more, and never far from the proportions.
    """
    if (fixed := fixed_labels(data, n)) is not None:
        return fixed
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


def fixed_labels(data: Data, n: int) -> Tensor | None:
    """Returns the labels int64 (n,) of samples, where captions fix which ones are the prompts."""
    return None if data.captions is None else data.captions.sample_labels(n)


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

    labels (N,), or tokens of texts, belong to indices one by one; `data` are those that the network
    was trained on. Diverged where the network draws anything but finite numbers.
    """
    for x, y in draws(module, sampler, labels, indices, data.shape, protocol, report):
        if not x.isfinite().all():
            raise Diverged("the pixels that the network draws are not finite")
        yield data.codec.decode(x, protocol.decode_precision), y


@torch.no_grad()
def draws(
    module: DiffusionModule,
    sampler: Sampler,
    labels: Tensor,
    indices: Sequence[int],
    shape: tuple[int, int, int],
    protocol: EvaluationConfig,
    report: Report,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the same batches as the sampler leaves them, float32 (n, C, H, W), finite or not.

    `shape` is (C, H, W) of what the network sees. The network alone computes in the protocol's
    precision, the sampler always in float32.
    """
    check_guidance(module.model, protocol.guidance)
    device = module.device
    check_precision(protocol.precision, device)
    network = guided(module.model, protocol.guidance, module.model.null, protocol.guidance_channels)
    for first in range(0, len(indices), protocol.batch_size):
        chunk = indices[first : first + protocol.batch_size]
        y = labels[first : first + protocol.batch_size].to(device)
        which = None
        if captions := module.captions_of(y):
            which = captions.sample_numbers(protocol.seed, chunk).to(device)
        noise = IndexedNoise(protocol.seed, chunk, shape)
        cost = len(chunk) * (1 if protocol.guidance == 1 else 2)
        with evaluation_mode(module):
            condition = module.condition(y, which)
            with _precision(protocol.precision, device) as precise:

                def predict(x: Tensor, t: Tensor, c: Tensor = condition) -> Tensor:
                    return precise(network, x, t, c)

                def drawn(noise: IndexedNoise = noise) -> Tensor:
                    return noise().to(device)

                count = partial(report, cost)
                x = sampler(predict, drawn(), module.diffusion, drawn, progress=count)
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
    kept: list[Tensor] = []
    mine = max(0, min(keep, indices.stop) - indices.start)
    broken = SumMetric(nan_strategy="error").to(scorer.device)
    for x, y in draws(module, sampler, labels, indices, data.shape, protocol, report):
        broken.update((~x.isfinite()).sum().to(scorer.device))
        images = data.codec.decode(x, protocol.decode_precision)
        scorer.update(images, y)
        kept.append(images[: mine - sum(map(len, kept))].cpu())
    images = torch.cat([torch.empty(0, *data.image_shape, dtype=torch.uint8), *kept])
    images, labels = (_of_all_ranks(x, scorer.device) for x in (images, labels[:mine]))
    scores = scorer.compute() | scorer.describe()
    return _nan_where(broken.compute() > 0, scores), images, labels


def score(
    scorer: Scorer, blocks: Iterable[tuple[Tensor, Tensor, int]], report: Report = silent
) -> dict[str, Any]:
    """Returns the score of samples that are drawn already, as `evaluate` gives it.

    They come in the order of their indices: images, labels, and how many of the numbers that the
    network drew were not finite. `report` is told the number of images.
    """
    scorer.reset()
    broken = 0
    for images, labels, bad in blocks:
        scorer.update(images, labels)
        broken += bad
        report(len(images))
    return _nan_where(broken > 0, scorer.compute() | scorer.describe())


def _nan_where(broken: Tensor | bool, scores: dict[str, Any]) -> dict[str, Any]:
    """Returns the scores, those that are measured as nan where the network has diverged."""
    return scores | dict.fromkeys(MEASURED & scores.keys(), math.nan) if broken else scores


def _of_all_ranks(rows: Tensor, device: torch.device) -> Tensor:
    """Returns the rows of all processes, in their order."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    return torch.cat(gather_all_tensors(rows.to(device))).cpu()
