"""Samples of an evaluation as files, which any number of processes draw and any of them reads.

A block is one batch of the sampler, so that who draws it changes no pixel. A process first draws
its own share, block i where i mod world is its rank, and then what is left; several plain commands
have equal shares. Who draws a block holds a lock on it, which ends with the process.
"""

__all__ = ["Blocks"]

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dtr_lightning.cli.duration import duration
from dtr_lightning.errors import Diverged, UserError
from dtr_lightning.experiment.evaluation import Report, draw_labels, draws, silent
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.rundir.arrays import read_arrays
from dtr_lightning.rundir.atomic import replacing
from dtr_lightning.rundir.claims import Claims
from dtr_lightning.rundir.run import write_json
from dtr_lightning.training.launch import ALONE, Place
from dtr_lightning.training.module import DiffusionModule

USE, SETUP, SCORE, FIRST = 0, 1, 2, 3  # what the bytes of the lock file stand for
WAIT = 0.2  # seconds between two looks at what others do

Block = tuple[Tensor, Tensor, int]


class Blocks:
    """The samples of one protocol in a folder; the first `with` makes it, the last removes it.

    Samples that are drawn are not drawn again until they are scored.

    Args:
        folder: where the blocks lie; its name identifies the network and the protocol.
        experiment: data, sampler and protocol.
        module: the network.
        stated: the protocol, for whoever finds the folder.
        place: of this process among those of its launcher.
        tell: is told, after the first block, how long the rest will take.
        finite: whether to raise Diverged where the network draws anything but finite numbers.
        keep: whether the files stay when they are scored.
    """

    def __init__(
        self,
        folder: Path,
        experiment: Experiment,
        module: DiffusionModule,
        stated: Mapping[str, Any],
        place: Place = ALONE,
        tell: Callable[[str], None] | None = None,
        finite: bool = False,
        keep: bool = False,
    ) -> None:
        self.folder, self.experiment, self.module, self.place = folder, experiment, module, place
        self.stated, self.tell, self.finite, self.keep = stated, tell, finite, keep
        protocol = experiment.protocol
        self.n, self.size = protocol.n, protocol.batch_size
        self.count = math.ceil(self.n / self.size)
        self.labels = draw_labels(experiment.data, protocol, self.n)

    def __enter__(self) -> "Blocks":
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self.claims = Claims(self.folder / "lock")
            except FileNotFoundError:  # removed just now by its last user
                continue
            self.claims.take(USE, shared=True, wait=True)
            if not self.claims.removed():
                break
            self.claims.close()
        try:
            self._agree_on_size()
        except BaseException:
            self.claims.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if self.keep:
                self._mark("kept").touch()
            if kind is not None and issubclass(kind, Diverged):
                self._mark("scored").touch()
            if self._mark("scored").exists() and not self._mark("kept").exists():
                self.claims.take(SETUP, wait=True)  # one after the other: the last one removes
                if self.claims.works and self.claims.take(USE):
                    shutil.rmtree(self.folder)
        finally:
            self.claims.close()

    def _agree_on_size(self) -> None:
        file = self.folder / "protocol.json"
        self.claims.take(SETUP, wait=True)
        if not file.exists():
            write_json(file, {**self.stated, "batch_size": self.size})
        self.claims.free(SETUP)
        if (size := json.loads(file.read_text())["batch_size"]) != self.size:
            raise UserError(
                f"the samples in {self.folder} are drawn with --evaluation.batch_size {size}, not "
                f"{self.size}; give {size}, or remove that folder"
            )

    def draw(self, report: Report = silent) -> bool:
        """Draws blocks until all are there; returns whether they are.

        The first process of a launcher waits for what others draw, and draws it where they end
        without; the others return when there is nothing left to begin.
        """
        rank, world = self.place.rank, self.place.world
        missing = sorted(range(self.count), key=lambda i: (i - rank) % world != 0)
        first = True  # of those that this process draws
        while True:
            done = []
            for i in missing:
                if self._path(i).exists():
                    report(self.experiment.sampling_work(len(self._span(i))))
                    done.append(i)
                elif self._may_draw(i) and self.claims.take(FIRST + i):
                    try:
                        if not self._path(i).exists():
                            clock = _Clock(report)
                            self._draw(i, clock)
                            done.append(i)
                            if first:
                                first = False
                                self._estimate(i, clock.seconds())
                    finally:
                        self.claims.free(FIRST + i)
            missing = [i for i in missing if i not in set(done)]
            if not missing:
                return True
            if not done:
                if rank:
                    return False
                report(0)
                time.sleep(WAIT)

    def _may_draw(self, i: int) -> bool:
        """Returns whether a block is of this process's share, or may be taken from another's."""
        return self.claims.works or (i - self.place.rank) % self.place.world == 0

    def _draw(self, i: int, report: Report) -> None:
        experiment, span = self.experiment, self._span(i)
        labels = self.labels[span.start : span.stop]
        protocol, data = experiment.protocol, experiment.data
        ((x, _),) = draws(
            self.module, experiment.sampler, labels, span, data.shape, protocol, report
        )
        broken = int((~x.isfinite()).sum())
        self._refuse(broken)
        images = data.codec.decode(x, protocol.decode_precision)
        assert images.shape == (len(span), *data.image_shape) and images.dtype == torch.uint8
        with replacing(self._path(i)) as part, part.open("wb") as file:
            np.savez(file, images=images.cpu().numpy(), broken=broken)

    def _estimate(self, drawn: int, seconds: float) -> None:
        """Tells how long the rest takes, by the duration of one block."""
        if self.place.rank or self.tell is None:
            return
        missing = [i for i in range(self.count) if not self._path(i).exists()]
        if not missing:
            return
        remaining, world = sum(len(self._span(i)) for i in missing), self.place.world
        whole = len(missing) == self.count - 1
        samples = f"{self.n:,} samples" if whole else f"{remaining:,} of {self.n:,} samples left"
        work = self.experiment.sampling_work(self.n if whole else remaining)
        lasts = duration(seconds / len(self._span(drawn)) * remaining / world)
        processes = "1 process" if world == 1 else f"{world} processes"
        self.tell(f"{samples}, {work:,} network evaluations, about {lasts} on {processes}")

    def _refuse(self, broken: int) -> None:
        if self.finite and broken:
            raise Diverged("the pixels that the network draws are not finite")

    @contextmanager
    def scoring(self, report: Report = silent) -> Iterator[None]:
        """Holds the blocks while they are scored: one process at a time does."""
        while not self.claims.take(SCORE):
            report(0)
            time.sleep(WAIT)
        try:
            yield
            self._mark("scored").touch()
        finally:
            self.claims.free(SCORE)

    def mend(self, report: Report = silent) -> None:
        """Reads all blocks, and draws damaged ones again; `report` hears no work of that."""
        while damaged := [i for i in range(self.count) if self._read(i) is None]:
            for i in damaged:
                path = self._path(i)
                logging.getLogger(__name__).warning("note: %s is damaged; it is drawn again", path)
                path.unlink(missing_ok=True)
            self.draw(lambda work: report(0))

    def __iter__(self) -> Iterator[Block]:
        """Yields images uint8 (n, C, H, W), labels int64 (n,), and how many numbers are not finite.

        They come in the order of the samples' indices, in the sampler's batches.
        """
        for i in range(self.count):
            block = self._read(i)
            assert block is not None, self._path(i)
            images, broken = block
            self._refuse(broken)
            span = self._span(i)
            yield torch.from_numpy(images), self.labels[span.start : span.stop], broken

    def _span(self, i: int) -> range:
        return range(i * self.size, min((i + 1) * self.size, self.n))

    def _mark(self, name: str) -> Path:
        return self.folder / name

    def _path(self, i: int) -> Path:
        return self.folder / f"{i:06d}.npz"

    def _read(self, i: int) -> tuple[np.ndarray, int] | None:
        """Returns a block's images and how many numbers are not finite; None if it is damaged."""
        shape = (len(self._span(i)), *self.experiment.data.image_shape)
        try:
            arrays = read_arrays(self._path(i))
            images, broken = arrays["images"], int(arrays["broken"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return (images, broken) if (images.shape, images.dtype) == (shape, np.uint8) else None


class _Clock:
    """Times a sampler by its reports, without the first step, which warms up."""

    def __init__(self, report: Report) -> None:
        self.report, self.times = report, [time.monotonic()]

    def __call__(self, work: int) -> None:
        self.times.append(time.monotonic())
        self.report(work)

    def seconds(self) -> float:
        """Returns how long a block lasts."""
        start, *steps = self.times
        if len(steps) < 2:
            return time.monotonic() - start
        return (steps[-1] - steps[0]) / (len(steps) - 1) * len(steps)
