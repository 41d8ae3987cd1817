"""The score of a set of samples, with all that is needed to read it: floor, copies, recall, KID.

The reference is the training split or, where it is asked for, the held-out one; the other split has
a score of its own, the floor.
"""

__all__ = ["Scorer"]

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed
from torchmetrics.aggregation import SumMetric

from dtr_lightning.data.base import SPLIT_NAMES, Data, Split
from dtr_lightning.errors import UserError
from dtr_lightning.metrics.class_scores import ClassifierScore
from dtr_lightning.metrics.copies import TRAIN, Copies, thumbnails
from dtr_lightning.metrics.distances import FrechetDistance, KernelDistance
from dtr_lightning.metrics.features import Features
from dtr_lightning.metrics.precision import PrecisionRecall
from dtr_lightning.metrics.reference import (
    Reference,
    note_others,
    read_reference,
    reference_key,
    write_reference,
)
from dtr_lightning.metrics.reservoir import LIMIT, BoundedRows

COUNTS = ("n", "copied", "labelled", "right")
Report = Callable[[int], None]  # how many more images were read


class Scorer:
    """Scores samples against the training images of a data set, or its held-out ones.

    Reference and floor (the score of the other images) are computed once, at the first update,
    and survive `reset`; data with a `reference_file` keep them there for the next scorer. Under
    torch.distributed every rank updates with its own samples and all call `compute` together. A
    Frechet distance falls with N: compare scores of equal N only, and read the floor with its own;
    where N is larger, the floor is too high by that bias.

    Memory does not grow with the images: distance and classifier score are sums, KID, and precision
    and recall, keep 10,000 rows of features of either side, copies 50,000 training thumbnails.

    Args:
        features: what images are compared by; names the score.
        data: the reference.
        device: where features are computed.
        limit: at most this many images of either split, evenly spaced; all by default.
        kid_subsets: how many subsets KID is averaged over; 100 is usual, 0 leaves KID out.
        split: which images are the reference, train or val.
    """

    def __init__(
        self,
        features: Features,
        data: Data,
        device: torch.device | str = "cpu",
        limit: int | None = None,
        kid_subsets: int = 10,
        split: Split = "train",
    ) -> None:
        if limit is not None and limit < 2:
            raise UserError(f"a score's limit of {limit} images is not valid; give 2 or more")
        if kid_subsets < 0:
            raise UserError(f"{kid_subsets} KID subsets are not valid; give 0 or more")
        self.device = torch.device(device)
        self.features = features.to(self.device).eval()
        self.data, self.limit, self.kid_subsets = data, limit, kid_subsets
        self.split: Split = split
        self.copies: Copies | None = None
        self.next_index = 0  # of a sample; a process that draws a later share sets it
        # each with an `update` of its own
        self.metrics: dict[str, Any] = {count: SumMetric() for count in COUNTS}
        self.metrics["score"] = FrechetDistance(features.num_features)
        self.metrics["near"] = PrecisionRecall()
        self.kept = ["near"]  # the metrics that keep rows
        if kid_subsets:
            self.metrics["kid"] = KernelDistance(features.num_features, kid_subsets)
            self.kept.append("kid")
        with torch.no_grad():
            logits = features.logits(torch.zeros(1, features.num_features, device=self.device))
        self.classes = 0 if logits is None else logits.shape[1]
        if self.classes:
            self.metrics["classes"] = ClassifierScore(self.classes)
        for metric in self.metrics.values():
            metric.to(self.device)

    @torch.no_grad()
    def prepare(self, report: Report = lambda count: None) -> None:
        """Reads the images of both splits, or what is stored of them; `update` does it else.

        `report` is called after every batch with its number of images, of this rank.
        """
        if self.copies is None:
            self._prepare(report)

    @torch.no_grad()
    def update(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Takes samples uint8 (N, C, H, W) and, for the accuracy, the classes (N,) they are of."""
        assert images.dtype == torch.uint8
        index = torch.arange(self.next_index, self.next_index + len(images))
        self.next_index += len(images)
        self.prepare()
        assert self.copies is not None
        images = images.to(self.device)
        features = self._extract(images)
        self.metrics["score"].update(features, real=False)
        for name in self.kept:
            self.metrics[name].update(features, real=False, index=index)
        self.metrics["n"].update(len(images))
        self.metrics["copied"].update(self.copies(thumbnails(images)).sum())
        if self.classes:
            logits = self.features.logits(features)
            self.metrics["classes"].update(logits)
            if labels is not None and self.classes == self.data.num_classes:
                self.metrics["labelled"].update(len(labels))
                self.metrics["right"].update((logits.argmax(1) == labels.to(self.device)).sum())

    @torch.no_grad()
    def compute(self) -> dict[str, float | int | str | None]:
        """Returns the score and how it was made, plain values; None for what was not measured.

        Keys: name, score, n, reference_n, floor, floor_n, accuracy (share of samples that the
        features' classifier reads as their class, where it knows the data's classes), copies (see
        Copies), copies_n (training images looked through for them), precision, recall (k = 3),
        classifier_score (the inception score's formula with the features' classifier) and, unless
        left out, kid, kid_std and kid_subsets.
        """
        if self.copies is None:
            raise UserError("a score needs samples: none were given")
        # An exchange between ranks has to happen on all of them: no count is passed over.
        n, copied, labelled, right = (int(self._total(count)) for count in COUNTS)
        if n < 2:
            raise UserError(f"a score needs at least 2 samples, not {n}")
        precision, recall = self.metrics["near"].compute()
        result = {
            "name": self.features.name,
            "score": float(self.metrics["score"].compute()),
            "n": n,
            "reference_n": self.reference_n,
            "floor": self.floor,
            "floor_n": self.floor_n,
            "accuracy": right / labelled if labelled else None,
            "copies": copied / n,
            "copies_n": len(self.copies.train),
            "precision": precision,
            "recall": recall,
            "classifier_score": self.metrics["classes"].compute() if self.classes else None,
        }
        if self.kid_subsets:
            kid, spread = self.metrics["kid"].compute()
            result |= {"kid": float(kid), "kid_std": float(spread), "kid_subsets": self.kid_subsets}
        return result

    def describe(self) -> dict[str, str | int]:
        """Returns what must be equal where scores are compared: reference, extractor, resize."""
        reference = f"{self.data.name}, {SPLIT_NAMES[self.split]} split"
        return {"reference": reference, **self.features.describe()}

    def reset(self) -> None:
        """Forgets the samples; reference and floor stay."""
        self.next_index = 0
        for metric in self.metrics.values():
            metric.reset()

    def _prepare(self, report: Report) -> None:
        rank, world = 0, 1
        if distributed.is_available() and distributed.is_initialized():
            rank, world = distributed.get_rank(), distributed.get_world_size()
        other: Split = "val" if self.split == "train" else "train"
        sizes = [len(self.data.split(name)) for name in (self.split, other)]
        self.reference_n, self.floor_n = (min(size, self.limit or size) for size in sizes)
        if self.reference_n < 2:
            which = SPLIT_NAMES[self.split]
            raise UserError(f"a score needs at least 2 {which} images to compare with")
        key = reference_key(self.features, self.data, self.limit, self.split)
        path = None if key is None else self.data.reference_file(key)
        if key and path:
            stored = read_reference(path, key)
            if _all_have(stored, self.device) and stored is not None:
                self._restore(stored, rank, world)
                return
            if rank == 0:
                note_others(path)
        train, val = (self._take(name, rank, world, report) for name in ("train", "val"))
        self.floor = float(self.metrics["score"].compute()) if self.floor_n > 1 else None
        self.metrics["score"].reset()
        self.copies = Copies(train, val)
        if key and path:
            reference = self._reference()  # of all ranks together
            if rank == 0:
                write_reference(path, key, reference)

    def _reference(self) -> Reference:
        """Returns what is known of the reference images of all ranks; each of them must call it."""
        score, kept = self.metrics["score"], self.metrics["near"].real
        with score.sync_context():
            names = ("sum", "cov_sum", "num_samples")
            total, squares, count = (
                getattr(score, f"real_features_{name}").clone() for name in names
            )
        with kept.sync_context():
            rows, index = kept.by_index()
        floor = torch.tensor(math.nan if self.floor is None else self.floor, dtype=torch.float64)
        copies = self.copies
        assert copies is not None
        return Reference(total, squares, count, rows, index, copies.train, copies.threshold, floor)

    def _restore(self, stored: Reference, rank: int, world: int) -> None:
        """Takes what is stored: the first rank the sums, each its share of the rows.

        For metrics add up and join what the ranks have.
        """
        if rank == 0:
            score = self.metrics["score"]
            score.real_features_sum = stored.total.to(self.device)
            score.real_features_cov_sum = stored.squares.to(self.device)
            score.real_features_num_samples = stored.count.to(self.device)
        rows, index = stored.rows[rank::world].to(self.device), stored.index[rank::world]
        for name in self.kept:
            self.metrics[name].update(rows, real=True, index=index)
        self.floor = None if stored.floor.isnan() else float(stored.floor)
        train, threshold = stored.thumbnails.to(self.device), stored.threshold.to(self.device)
        self.copies = Copies(train, train[:0], threshold)

    def _take(self, split: Split, rank: int, world: int, report: Report) -> Tensor:
        """Takes this rank's training or held-out images: every world-th from its own on.

        Returns the thumbnails (N, D) that are kept, of all ranks.
        """
        real = split == self.split
        kept = BoundedRows(TRAIN if split == "train" else LIMIT).to(self.device)
        for images, _ in self.data.image_batches(split, self.limit, rank, world, self.device):
            index = rank + world * torch.arange(kept.given, kept.given + len(images))
            features = self._extract(images)
            self.metrics["score"].update(features, real=real)
            for name in self.kept if real else ():
                self.metrics[name].update(features, real=True, index=index)
            kept.update(thumbnails(images), index)
            report(len(images))
        return kept.compute()

    def _extract(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            return self.features(images)

    def _total(self, count: str) -> Tensor:
        metric = self.metrics[count]
        metric.update(0)  # torchmetrics warns of metrics that were never updated
        return metric.compute()


def _all_have(stored: Reference | None, device: torch.device) -> bool:
    """Returns whether every rank could read what is stored: otherwise all compute it together."""
    have = torch.tensor(int(stored is not None), device=device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(have, distributed.ReduceOp.MIN)
    return bool(have)
