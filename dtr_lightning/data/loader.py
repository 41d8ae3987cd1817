"""From draws to batches: in this process, or in workers that leave stops and their end to it."""

__all__ = ["Batch", "Draw", "loader"]

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.context import BaseContext

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dtr_lightning.cli.commands import STOPS
from dtr_lightning.errors import UserError

Batch = tuple[Tensor, Tensor]

# Indices, flips, and of data with captions their numbers. NumPy's, as a tensor on its way to a
# worker is a file descriptor that this process has to serve.
Draw = tuple[np.ndarray | None, ...]


def loader(
    pairs: Dataset,
    draws: Iterable[Draw],
    workers: int,
    persistent: bool = False,
    explain: Callable[[UserError], UserError] = lambda error: error,
) -> DataLoader:
    """Returns the batches of these draws from pairs (image, label), made by `workers` processes.

    0 workers: by this one. Persistent ones live on for a second pass. A pair that cannot be read is
    raised as its UserError, in the words of `explain`; a worker that dies as a RuntimeError, within
    seconds.
    """
    made = _Loader(
        _Batches(pairs),
        sampler=draws,
        batch_size=None,
        collate_fn=_as_is,
        num_workers=workers,
        worker_init_fn=_begin_worker,
        multiprocessing_context=_worker_context() if workers else None,
        generator=torch.Generator(),  # else each iterator takes a number from the global one
        persistent_workers=workers > 0 and persistent,
        pin_memory=workers > 0 and torch.cuda.is_available(),
    )
    made.explain = explain
    return made


class _Batches(Dataset):
    """Makes a whole batch from its draws; a UserError is returned as the batch."""

    def __init__(self, pairs: Dataset) -> None:
        self.pairs = pairs

    def __getitem__(self, draw: Draw) -> Batch | UserError:
        indices = torch.from_numpy(draw[0])
        flips, *which = (None if part is None else torch.from_numpy(part) for part in draw[1:])
        if hasattr(self.pairs, "batch"):
            return self.pairs.batch(indices, flips, *which)
        if isinstance(self.pairs, TensorDataset):
            images, labels = self.pairs[indices]
        else:
            try:
                pairs = [self.pairs[i] for i in indices.tolist()]
            except UserError as error:
                # Raised in a worker it would arrive wrapped in a traceback of many lines.
                return error
            images = torch.stack([image for image, _ in pairs])
            labels = torch.tensor([label for _, label in pairs])
        if flips is not None:
            images[flips] = images[flips].flip(-1)
        return images, labels


class _Loader(DataLoader):
    """Raises the UserError that a worker handed over as a batch."""

    explain: Callable[[UserError], UserError]

    def __iter__(self) -> Iterator[Batch]:
        # a worker begins with these signals blocked, until `_begin_worker` takes over
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        child_ends = signal.getsignal(signal.SIGCHLD)
        try:
            batches = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            # torch's handler raises wherever the training is; a lost worker is seen here within 5 s
            if signal.getsignal(signal.SIGCHLD) is not child_ends:
                signal.signal(signal.SIGCHLD, child_ends)
        try:
            for batch in batches:
                if isinstance(batch, UserError):
                    raise self.explain(batch)
                yield batch
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            if not self.num_workers:
                raise
            # in torch's words, which `known_failure` reads wherever a worker's end is noticed
            raise RuntimeError("DataLoader worker ended as it handed over a batch") from error
        finally:
            del batches  # a traceback that is kept would keep the workers, and these the exit


class _Flag:
    """An event without a lock, which a worker that is killed would keep for ever."""

    def __init__(self, context: BaseContext) -> None:
        self.raised = context.RawValue(ctypes.c_bool, False)

    def is_set(self) -> bool:
        return self.raised.value

    def set(self) -> None:
        self.raised.value = True


def _worker_context() -> BaseContext:
    """Returns the platform's way to start workers, which tells them of their end by a flag."""
    usual: type = type(multiprocessing.get_context(multiprocessing.get_start_method()))

    class WorkerContext(usual):
        def Event(self) -> _Flag:
            return _Flag(self)

    return WorkerContext()


def _begin_worker(worker: int) -> None:
    """Leaves signals, and what to say of a run that ends, to the main process."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    # called by the thread that hands batches over, where the main process has gone meanwhile
    sys.excepthook = lambda kind, error, trace: (
        None
        if issubclass(kind, (ConnectionError, EOFError))
        else sys.__excepthook__(kind, error, trace)
    )


def _as_is(batch: Batch) -> Batch:
    return batch
