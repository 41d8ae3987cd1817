"""Measures trained networks on the same images and noise, and stores the numbers with the run."""

__all__ = ["OnProgress", "Probe", "artifact", "at_least", "measured", "needs", "to_measure"]

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis.measure.load import load
from analysis.read.runs import Finished
from analysis.read.settings import Setting, highlighted, settings
from dtr_lightning.cli.progress_bar import Bar
from dtr_lightning.config.evaluation import LARGEST_SEED
from dtr_lightning.errors import UserError
from dtr_lightning.models import evaluation_mode
from dtr_lightning.rundir.arrays import read_arrays
from dtr_lightning.rundir.atomic import writing
from dtr_lightning.rundir.run import Run

Arrays = dict[str, np.ndarray]
OnProgress = Callable[[float], None]  # takes the share of the work that is done, in 0..1


@dataclass(frozen=True)
class Probe:
    """A network, images x0 (n, C, H, W), their conditions y and noise."""

    module: nn.Module
    x0: Tensor
    y: Tensor
    noise: Tensor

    @classmethod
    def of(cls, run: Run, images: int, seed: int) -> "Probe":
        """Returns the average weights of a run and its own data; UserError for several experts."""
        trained = load(run)
        return cls.on(trained.module, trained.experiment.data, images, seed)

    @classmethod
    def on(cls, module: nn.Module, data: Any, images: int, seed: int) -> "Probe":
        """Returns a module and training images of Data, evenly spaced, then shuffled, with labels.

        Order and noise follow from the seed. All images are used where there are fewer.
        """
        stored, labels = map(torch.cat, zip(*data.stored_batches("train", images), strict=True))
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(labels), generator=generator)
        x0 = data.codec.mean(stored[order])
        noise = torch.randn(x0.shape, generator=generator)
        with evaluation_mode(module):
            y = module.condition(labels[order].to(module.device), order.to(module.device))
        return cls(module, x0.to(module.device), y, noise.to(module.device))

    def minibatches(self, size: int) -> Iterator["Probe"]:
        """Yields parts of at least `size` images, of all where there are fewer."""
        count = max(1, len(self.x0) // size)
        parts = (x.tensor_split(count) for x in (self.x0, self.y, self.noise))
        for part in zip(*parts, strict=True):
            yield Probe(self.module, *part)

    def tasks(self, t: int) -> Tensor:
        """Returns t for every image: int64 (n,)."""
        return torch.full((len(self.x0),), t, device=self.x0.device)


def at_least(config: Any, **least: int) -> None:
    """Raises UserError for an option below the least that is given for it."""
    for name, bound in least.items():
        if (value := getattr(config, name)) < bound:
            raise UserError(f"{name} must be at least {bound}; got {value}")
    if (seed := getattr(config, "seed", 0)) > LARGEST_SEED:
        raise UserError(f"seed must be at most {LARGEST_SEED}; got {seed}")


def to_measure(runs: Sequence[Finished]) -> tuple[list[Setting], list[str]]:
    """Returns the settings to measure, one run each, and a line per reason to leave others out."""
    lines = []
    single = [run for run in runs if run.flat.get("experts", 1) == 1]
    if skipped := len(runs) - len(single):
        lines.append(f"left out, as experts share no weights: {skipped}")
    sound = [run for run in single if np.isfinite(run.score) and run.last.is_file()]
    if skipped := len(single) - len(sound):
        lines.append(f"left out, diverged or without a checkpoint: {skipped}")
    every = settings(sound)
    selected = highlighted(every)
    if skipped := len(every) - len(selected):
        lines.append(f"settings not measured: {skipped}; name their runs to measure them")
    return selected, lines


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: a finished run of one network with its checkpoint."""
    selected, lines = to_measure(runs)
    return None if selected else "; ".join(lines or ["no run is finished"])


def artifact(run: Run, name: str) -> Path:
    """Returns the path of a file that belongs to a run."""
    return run.path / "artifacts" / name


def _stored(path: Path, key: str) -> Arrays | None:
    """Returns the arrays of a file with this key; None if there is none, or a damaged one."""
    try:
        arrays = read_arrays(path)
    except (OSError, ValueError):
        return None
    return arrays if str(arrays.pop("key", "")) == key else None


def measured(
    name: str,
    runs: Sequence[Run],
    config: Any,
    measure: Callable[[Probe, Any, OnProgress], Mapping[str, np.ndarray]],
) -> tuple[dict[Path, Arrays], list[str]]:
    """Returns {run's path: its numbers}, and a line for each run that cannot be measured.

    Each run is stored as soon as it is done, with the config and the checkpoint that its numbers
    are of; what is stored already is not measured again.
    """
    options = json.dumps(asdict(config), sort_keys=True)
    file = f"{name}-{sha256(options.encode()).hexdigest()[:6]}.npz"
    keys = {}
    for run in runs:
        state = run.last.stat()
        keys[run.path] = f"{options} {state.st_mtime_ns} {state.st_size}"
    stored = {run.path: _stored(artifact(run, file), keys[run.path]) for run in runs}
    numbers = {path: arrays for path, arrays in stored.items() if arrays is not None}
    missing = [run for run in runs if run.path not in numbers]
    lines: list[str] = []
    if not missing:
        return numbers, lines
    with Bar(name) as bar:
        for i, run in enumerate(missing):

            def on_progress(share: float, i: int = i, run: Run = run) -> None:
                bar(int(1000 * (i + share)), 1000 * len(missing), f"{name} {run.path.name}")

            on_progress(0)
            try:
                probe = Probe.of(run, config.images, config.seed)
                arrays: dict[str, Any] = {**measure(probe, config, on_progress)}
            except UserError as error:
                lines.append(f"left out {run.path.name}: {error}")
                continue
            with writing(artifact(run, file)) as part:
                np.savez(part, key=np.array(keys[run.path]), **arrays)
            numbers[run.path] = arrays
    return numbers, lines
