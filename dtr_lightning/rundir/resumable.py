"""A small training that goes on where it stopped: all of its state is one file, until it ends."""

__all__ = ["EVERY", "Part", "Resumable"]

import pickle
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import torch

from dtr_lightning.errors import Stopped, UserError
from dtr_lightning.rundir.atomic import writing

EVERY = 30.0  # seconds between two savings
BROKEN = (RuntimeError, OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError)


class Part(Protocol):
    """What has a state: a module, an optimiser, a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Takes a state."""


class Resumable:
    """The state of a training of few seconds or minutes, saved on a signal and now and then.

    Saved are the parts, the random generator, the order of the images in this epoch, the step and
    the CPU time: what goes on ends with the weights of an uninterrupted training, to the bit.

    Args:
        file: of the state, written beside and renamed; None: nothing is saved.
        recipe: of the training; the state of another one is refused. Plain values.
        stop: ends the training after its step.
    """

    def __init__(
        self, file: Path | None, recipe: Mapping[str, Any], stop: Event | None = None
    ) -> None:
        self.file, self.recipe, self.stop = file, dict(recipe), stop or Event()
        self.cpu_before = 0.0  # seconds, of earlier starts
        self.order = torch.empty(0, dtype=torch.long)  # of the images in an epoch, set by the loop

    def steps(
        self, total: int, generator: torch.Generator, parts: Mapping[str, Part]
    ) -> Iterator[int]:
        """Yields the steps that are left of `total`; what the loop does with one, it has then done.

        Stopped after a step at which the training was asked to stop; UserError for a state that is
        unreadable or of another recipe.
        """
        first, saved = self._load(generator, parts), time.monotonic()
        for step in range(first, total):
            yield step
            stopped = self.stop.is_set()
            if stopped or time.monotonic() - saved > EVERY:
                self._save(step + 1, generator, parts)
                saved = time.monotonic()
            if stopped:
                raise Stopped

    def cpu_seconds(self) -> float:
        """Returns the CPU time of all starts of this training."""
        return self.cpu_before + time.process_time()

    def end(self) -> None:
        """Removes the state: its result is written."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def _save(self, step: int, generator: torch.Generator, parts: Mapping[str, Part]) -> None:
        if self.file is None:
            return
        state = {
            "recipe": self.recipe,
            "step": step,
            "cpu_seconds": self.cpu_seconds(),
            "order": self.order,
            "generator": generator.get_state(),
            "parts": {name: part.state_dict() for name, part in parts.items()},
        }
        with writing(self.file) as beside:
            torch.save(state, beside)

    def _load(self, generator: torch.Generator, parts: Mapping[str, Part]) -> int:
        """Returns the next step."""
        if self.file is None or not self.file.exists():
            return 0
        try:
            state = torch.load(self.file, weights_only=True)
            if state["recipe"] == self.recipe:
                for name, part in parts.items():
                    part.load_state_dict(state["parts"][name])
                generator.set_state(state["generator"])
                self.order, self.cpu_before = state["order"], state["cpu_seconds"]
                return state["step"]
        except BROKEN as error:
            raise UserError(
                f"{self.file} cannot be read; remove it, and the training starts anew"
            ) from error
        raise UserError(
            f"{self.file} is of a training by another recipe; remove it, and a new one starts"
        )
