"""What a data set is: two splits of (image, label) pairs, and who gets which pair when.

The training batch of step s is a function of (seed, s) alone: not of the number of GPUs or workers,
nor of where a run was interrupted. The paper fixes only batch size and flip (Appendix C); the
order is ours, so that comparisons between routers are paired.
"""

__all__ = ["Batch", "Data", "ResumableSampler", "Split"]

import itertools
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from dtr_lightning.data.captions import Captions
from dtr_lightning.data.codec import VAE, Codec, Pixels
from dtr_lightning.data.loader import Batch, Draw, loader
from dtr_lightning.errors import UserError

Split = Literal["train", "val"]

REFERENCE_BATCH = 512
SPLIT_NAMES: dict[Split, str] = {"train": "training", "val": "held-out"}  # as texts call them


class ResumableSampler(Sampler[Draw]):
    """The infinite stream of draws: epoch after epoch, each a permutation drawn from (seed, epoch).

    Flips are drawn after the order, and then, of images with `captions` (size,) each, the number of
    one of these: order and flips are the same with captions and without.

    Batch s is positions [sB, (s+1)B) of the stream. It is split into world x accumulate parts: part
    p = i world + rank, the i-th of this rank, is every (world x accumulate)-th position from the
    p-th on. Iteration starts at step `start()`, which is asked anew by every iterator.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int = 0,
        flip: bool = True,
        rank: int = 0,
        world: int = 1,
        start: Callable[[], int] = lambda: 0,
        accumulate: int = 1,
        captions: np.ndarray | None = None,
    ) -> None:
        assert batch_size % (world * accumulate) == 0
        self.size, self.batch_size, self.seed, self.flip = size, batch_size, seed, flip
        self.rank, self.world, self.accumulate, self.start = rank, world, accumulate, start
        self.captions = captions
        self.epochs: dict[int, list[np.ndarray]] = {}

    def __iter__(self) -> Iterator[Draw]:
        """Yields this rank's parts of one step after the other, without end."""
        for step in itertools.count(self.start()):
            whole = self.step(step)
            for i in range(self.accumulate):
                mine = slice(i * self.world + self.rank, None, self.world * self.accumulate)
                yield tuple(None if draws is None else draws[mine] for draws in whole)

    def step(self, step: int) -> Draw:
        """Returns the draws of a whole step: indices int64 (B,), flips bool (B,) or None.

        With captions also their numbers int64 (B,).
        """
        first = step * self.batch_size
        stop = first + self.batch_size
        pieces = []
        while first < stop:
            epoch, place = divmod(first, self.size)
            taken = min(self.size - place, stop - first)
            pieces.append([part[place : place + taken] for part in self._epoch(epoch)])
            first += taken
        indices, flips, *which = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        return indices, flips if self.flip else None, *which

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        if epoch not in self.epochs:
            # SeedSequence mixes the pair; torch's CPU generator would keep 32 bits of a sum.
            rng = np.random.default_rng((self.seed, epoch))
            self.epochs = {e: kept for e, kept in self.epochs.items() if e == epoch - 1}
            self.epochs[epoch] = [rng.permutation(self.size), rng.random(self.size) < 0.5]
            if self.captions is not None:
                order = self.epochs[epoch][0]
                self.epochs[epoch].append(rng.integers(self.captions[order]))
        return self.epochs[epoch]


class Data(LightningDataModule, ABC):
    """Images with labels; a subclass is a choice of `--data` by its name and gives `split`.

    A constructor sets `in_channels`, `image_size`, `num_classes` (1: unconditional) and
    `class_names` by a cheap scan at most. `seed` is the run's and decides order and flips. Trainers
    need `use_distributed_sampler=False`.

    Args:
        batch_size: images per step, all ranks together.
        flip: whether half of the images are mirrored, left to right.
        workers: processes that read images; 0: the training's own.
    """

    in_channels: int
    image_size: int
    num_classes: int
    class_names: tuple[str, ...]
    codec: Codec = Pixels()  # between what `split` gives and what the network sees
    has_images: bool = True  # or sizes alone, for which a network can be made
    captions: Captions | None = None  # what a text-conditional network is told in place of labels
    caption_counts: np.ndarray | None = None  # of each training image, where batches hold tokens
    seed: int = 0
    source: str = ""  # where the held-out images are from, as ` (from val/)`
    left_out: str = ""  # what is not read, as `; passed over: 88 .txt`
    _class_counts: list[int] | None = None

    def __init__(self, batch_size: int = 256, flip: bool = True, workers: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch size {batch_size} is not valid; give 1 or more")
        if workers < 0:
            raise UserError(f"{workers} data workers are not valid; give 0 or more")
        self.batch_size, self.flip, self.workers = batch_size, flip, workers
        self._class_counts: list[int] | None = None

    @property
    def name(self) -> str:
        """What the reference of a score is called."""
        return type(self).__name__

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network sees."""
        return self.in_channels, self.image_size, self.image_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.codec.image_shape(self.shape)

    def sizes(self) -> dict[str, Any]:
        """Returns what a network that was trained on the data needs to be sampled from."""
        sizes = ("in_channels", "image_size", "num_classes")
        names = {"class_names": list(self.class_names), "captions": self.captions is not None}
        return {key: getattr(self, key) for key in sizes} | names

    def record(self) -> dict[str, Any]:
        """Returns what a run keeps of its data: the sizes, and what makes a codec but pixels."""
        kind = type(self.codec)
        if kind is Pixels:
            return self.sizes()
        own = {} if kind is VAE else {"codec_class": f"{kind.__module__}.{kind.__qualname__}"}
        return self.sizes() | {"codec": self.codec.arguments()} | own

    def digest(self) -> str:
        """Returns a digest of which images these are, wherever they lie: classes and splits."""
        counts = [len(self.split(name)) for name in get_args(Split)]
        return sha256(json.dumps([self.sizes(), counts]).encode()).hexdigest()[:12]

    def digest_of(self, name: Split, rows: range) -> str:
        """Returns a digest of some images of a split; a subclass that knows no more, of all."""
        return self.digest()

    def reference_file(self, key: str) -> Path | None:
        """Returns where a score may keep what it needs of the images, by a key; None: nowhere.

        What it keeps is a digest of features, limit and `digest()`; reading the images takes long.
        """
        return None

    @abstractmethod
    def split(self, name: Split) -> Dataset:
        """Returns one split: map-style, sized, of (uint8 image (C, H, W), int label).

        A TensorDataset (images (N, C, H, W), labels (N,)) is indexed a batch at a time. A split
        with a method `batch(indices, flips or None)` makes the batch (stored, labels) itself; with
        `caption_counts` it is also given numbers of captions, and returns tokens for labels.
        """

    def class_counts(self) -> list[int]:
        """Returns how many training images each class has; override it where that is known.

        Every pair of a split that is no TensorDataset is read for it, once. UserError for labels
        beyond num_classes.
        """
        if self._class_counts is None:
            train = self.split("train")
            if self.num_classes == 1:
                return [len(train)]
            if isinstance(train, TensorDataset):
                labels = train.tensors[1]
            else:
                labels = torch.tensor([int(train[i][1]) for i in range(len(train))])
            if (last := int(labels.max())) >= self.num_classes:
                name = type(self).__name__
                raise UserError(f"{name} has a label {last}, but {self.num_classes} classes")
            self._class_counts = labels.bincount(minlength=self.num_classes).tolist()
        return self._class_counts

    def describe(self) -> str:
        """Returns what is read, in one line: images, classes, held out, and what is passed over."""
        sizes = [len(self.split(name)) for name in ("train", "val")]
        classes = "1 class" if self.num_classes == 1 else f"{self.num_classes:,} classes"
        return (
            f"{sum(sizes):,} images, {classes}, {sizes[1]:,} held out{self.source}{self.left_out}"
        )

    def announce(self) -> None:
        """Says on stderr what is read: a command does at its start, once."""
        print(f"data: {self.describe()}", file=sys.stderr, flush=True)

    def check(self, world: int = 1, accumulate: int = 1) -> None:
        """Raises UserError where the batch size fits neither the data nor its parts.

        Also where the codec cannot be had.
        """
        self.codec.check()
        size, val = len(self.split("train")), len(self.split("val"))
        if self.batch_size > size:
            raise UserError(
                f"batch size {self.batch_size} is larger than the training set; "
                f"give --data.batch_size {size}, its number of images, or less"
            )
        if self.batch_size % world:
            raise UserError(
                f"batch size {self.batch_size} (of all ranks together) is not divisible by the "
                f"{world} ranks; give a multiple of {world}"
            )
        if self.batch_size % (world * accumulate):
            raise UserError(
                f"batch size {self.batch_size} does not divide into {accumulate} accumulated parts "
                f"of {world} ranks; give a multiple of {world * accumulate}"
            )
        if val < world:
            raise UserError(f"{val} held-out images cannot be shared by {world} ranks")

    def explain(self, error: UserError) -> UserError:
        """Returns the error to raise for a pair that cannot be read; it may name others too."""
        return error

    def train_dataloader(self) -> DataLoader:
        """Returns the endless batches of this rank: as stored (n, ...), and labels int64 (n,).

        In place of labels stand the tokens (n, L_text, C_text) of stored captions.
        Every iterator starts at the trainer's step, so a resumed run goes on where it stopped.
        """
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        accumulate = trainer.accumulate_grad_batches if trainer else 1
        self.check(world, accumulate)
        draws = ResumableSampler(
            len(self.split("train")),
            self.batch_size,
            self.seed,
            self.flip,
            rank,
            world,
            lambda: trainer.global_step if trainer else 0,
            accumulate,
            self.caption_counts,
        )
        return self._loader("train", draws, persistent=True)

    def stored_batches(
        self, name: Split, limit: int | None = None, rank: int = 0, world: int = 1
    ) -> DataLoader:
        """Returns batches of a split as they are stored, in fixed order, unflipped, with labels.

        `limit` takes that many, evenly spaced; `rank` of `world` takes every world-th of them.
        """
        size = len(self.split(name))
        count = size if limit is None else min(size, limit)
        indices = (torch.arange(count) * size // count)[rank::world]
        return self.chosen_batches(name, [x for x in indices.split(REFERENCE_BATCH) if len(x)])

    def chosen_batches(self, name: Split, parts: Sequence[Tensor]) -> DataLoader:
        """Returns batches of a split as they are stored, unflipped: these indices (n,) each."""
        return self._loader(name, [(part.numpy(), None) for part in parts])

    def image_batches(
        self,
        name: Split,
        limit: int | None = None,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """Yields the same as images uint8 (n, C, H, W) on a device, where latents are decoded."""
        for stored, labels in self.stored_batches(name, limit, rank, world):
            yield self.codec.restore(stored.to(device)), labels

    def _loader(self, name: Split, draws: Iterable[Draw], persistent: bool = False) -> DataLoader:
        return loader(self.split(name), draws, self.workers, persistent, self.explain)
