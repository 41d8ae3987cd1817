"""From Python: a stored run as an object, many of them as one table, and a run to train."""

__all__ = ["RunList", "StoredRun", "load", "runs", "train"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dtr_lightning.cli.commands import quiet
from dtr_lightning.config.evaluation import EvaluationConfig
from dtr_lightning.config.parser import resolve, run_name
from dtr_lightning.data import Data
from dtr_lightning.data.scan import few
from dtr_lightning.errors import UserError, is_utf8, refuse_diverged
from dtr_lightning.experiment import fit
from dtr_lightning.experiment.evaluation import Report, fixed_labels, sample, silent
from dtr_lightning.experiment.load import TrainedRun, other_protocol
from dtr_lightning.models import Denoiser, RangeExperts
from dtr_lightning.routing import Router
from dtr_lightning.rundir.naming import settings
from dtr_lightning.rundir.run import Run, find_runs

if TYPE_CHECKING:
    import pandas as pd


class StoredRun:
    """A trained run on one device: its network with the averaged weights, its router, its files.

    Args:
        path: the run directory.
        checkpoint: "last", or "step=N" where a milestone was kept.
        options: as evaluate.py takes them, such as ["--sampler", "DDPM", "--sampler.steps=250"].
    """

    def __init__(
        self, path: str | Path, checkpoint: str = "last", options: Sequence[str] = ()
    ) -> None:
        quiet()
        self.files = Run.existing(path)
        self.checkpoint = checkpoint
        if checkpoint == "last":
            refuse_diverged(self.files.path, self.files.results)
        config = other_protocol(self.files, options)
        self.trained = TrainedRun(self.files, config, checkpoint)

    def __repr__(self) -> str:
        milestone = "" if self.checkpoint == "last" else f", {self.checkpoint!r}"
        return f"StoredRun({str(self.files.path)!r}{milestone})"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config that the run was trained with."""
        return self.files.config

    @property
    def results(self) -> dict[str, Any] | None:
        """The final numbers, as results.json has them; None while the run is not done."""
        return self.files.results

    @property
    def network(self) -> Denoiser | RangeExperts:
        """The network in evaluation mode: (x (N, C, H, W), t (N,), y (N,)) -> (N, C_out, H, W)."""
        return self.trained.module.model

    @property
    def router(self) -> Router:
        """The network's router; of several experts, the first one's."""
        network = self.network
        return (network.networks[0] if isinstance(network, RangeExperts) else network).router

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes' names, by label."""
        return tuple(self.trained.experiment.data.class_names)

    def metrics(self) -> "pd.DataFrame":
        """Returns metrics.jsonl as a table: a row per record, a column per logged number."""
        import pandas as pd

        return pd.DataFrame(self.files.metrics())

    def sample(
        self,
        n: int = 64,
        classes: Sequence[int | str] | None = None,
        guidance: float | None = None,
        seed: int | None = None,
        report: Report = silent,
        prompts: Sequence[str] | None = None,
    ) -> Tensor:
        """Returns n samples uint8 (n, C, H, W) on the CPU, of the classes (default: all) in turn.

        A run that was trained on captions takes prompts in place of classes, and draws these in
        turn; without either, its own prompts. Sample i depends on the seed and i alone. guidance
        and seed are the run's own by default. UserError for a class or words that the run does not
        have, or guidance that it cannot have.
        """
        if n < 1:
            raise UserError(f"n must be at least 1; got {n}")
        if prompts is not None and (classes is not None or isinstance(prompts, str) or not prompts):
            raise UserError("give a list of prompts, or classes, not both")
        experiment = self.trained.experiment
        given = {"guidance": guidance, "seed": seed}
        changed = {key: value for key, value in given.items() if value is not None}
        protocol = EvaluationConfig(**experiment.config["evaluation"] | changed)
        module, data, sampler = self.trained.module, experiment.data, experiment.sampler
        tokens = None if prompts is None else self._encoded(prompts)
        labels = self.labels(n, classes) if tokens is None else torch.arange(n) % len(tokens)
        images = []
        for part in torch.arange(n).split(protocol.batch_size):
            conditions = labels[part] if tokens is None else tokens[labels[part]]
            drawn = sample(module, data, sampler, conditions, part.tolist(), protocol, report)
            images += [batch.cpu() for batch, _ in drawn]
        return torch.cat(images)

    def _encoded(self, prompts: Sequence[str]) -> Tensor:
        """Returns the tokens (P, L_text, C_text) of texts, on the CPU."""
        if (captions := self.trained.module.captions) is None:
            raise UserError(
                f"{self.files.path} was trained on class labels and takes no prompt; give classes"
            )
        if wrong := next((text for text in prompts if not is_utf8(text)), None):
            raise UserError(f"the prompt {wrong!a} is no text: it has half of a character")
        return captions.encode(prompts).cpu()

    def labels(self, n: int, classes: Sequence[int | str] | None = None) -> Tensor:
        """Returns the labels int64 (n,) of n samples of the classes in turn."""
        data = self.trained.experiment.data
        if classes is None and (fixed := fixed_labels(data, n)) is not None:
            return fixed
        numbers = class_numbers(data, classes)
        return torch.tensor([numbers[i % len(numbers)] for i in range(n)])


class RunList(Sequence[Run]):
    """The runs below some directories, in the order of their paths; nothing is loaded."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)

    def __repr__(self) -> str:
        count = "1 run" if len(self) == 1 else f"{len(self):,} runs"
        return f"<RunList of {count}: {few([str(run.path) for run in self])}>"

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: Any) -> Any:
        runs = self.runs[index]
        return RunList(runs) if isinstance(index, slice) else runs

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per run: its path, status, options by dotted name, and results."""
        import pandas as pd

        return pd.DataFrame(list(map(_row, self.runs)))


def _row(run: Run) -> dict[str, Any]:
    results = run.results or {}
    scalars = {k: v for k, v in results.items() if isinstance(v, bool | int | float | str)}
    status = "done" if results else run.meta.get("status", "not started")
    options = {k: v for k, v in settings(run.config).items() if k not in scalars}
    return {"run": str(run.path), "status": run.meta.get("status", status), **options, **scalars}


def load(path: str | Path, checkpoint: str = "last", options: Sequence[str] = ()) -> StoredRun:
    """Returns a trained run, ready to sample from; UserError if there is none at the path."""
    return StoredRun(path, checkpoint, options)


def runs(*directories: str | Path) -> RunList:
    """Returns all runs at or below directories; UserError for one that does not exist."""
    return RunList(find_runs(directories))


def train(
    config: str | Path, options: Mapping[str, Any] | None = None, out: str | Path | None = None
) -> StoredRun:
    """Trains and evaluates a run of a YAML file with options by dotted name, and returns it.

    For instance train("configs/digits.yaml", {"router": "DTR", "router.alpha": 2}). As with
    train.py, a run that is done is not trained again, and one that was interrupted goes on. out:
    its directory, by default runs/<name of the config>/<name of the run>.
    """
    resolved = resolve(config, options)
    out = Path(out or Path("runs") / Path(config).stem / run_name(resolved, config))
    quiet()
    fit.run(resolved, out)
    return load(out)


def class_numbers(data: Data, names: Sequence[int | str] | None) -> list[int]:
    """Returns the labels of classes given by name or number; UserError for one out of range."""
    if names is None:
        return list(range(data.num_classes))
    if data.num_classes == 1:
        kind = "is unconditional" if data.captions is None else "takes prompts"
        raise UserError(f"the run {kind}: it has no classes to choose from")
    return [_class_number(data, str(name)) for name in names]


def _class_number(data: Data, name: str) -> int:
    if name in data.class_names:
        return data.class_names.index(name)
    if name.isdecimal() and int(name) < data.num_classes:
        return int(name)
    shown = ", ".join(data.class_names[:20]) + (" ..." if data.num_classes > 20 else "")
    last = data.num_classes - 1
    raise UserError(f"unknown class {name!r}; valid: 0 to {last}, or by name: {shown}")
