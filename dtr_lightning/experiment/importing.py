"""A run directory from a checkpoint of other code, for evaluate.py, sample.py and analysis."""

__all__ = ["Imported", "import_checkpoint"]

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from hashlib import file_digest
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dtr_lightning.checkpoints.fitting import fit_weights
from dtr_lightning.checkpoints.layouts import OWN, Checkpoint, recognise
from dtr_lightning.checkpoints.official import official_options
from dtr_lightning.checkpoints.reading import read
from dtr_lightning.config.parser import AXES, Config, contents_of, make_parser, options, parse
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.rundir.atomic import replacing, telling_of_disk
from dtr_lightning.rundir.provenance import provenance
from dtr_lightning.rundir.run import Run

SIZED = {"hidden_size", "depth", "num_heads"}  # of DiT_S to DiT_XL
RESERVED = {"class_path", "init_args", "help"}  # what the parser of options takes for more
FEATURES = {"features": "TimmFeatures"}  # where nothing says which


class Imported(NamedTuple):
    """What was read, what of its config was assumed, and the run that it became."""

    checkpoint: Checkpoint
    assumed: list[str]
    experiment: Experiment
    run: Run


def import_checkpoint(
    file: str | Path,
    out: str | Path,
    arguments: Sequence[str] = (),
    kind: str | None = None,
    weights: str | None = None,
) -> Imported:
    """Writes a run directory of a checkpoint's weights, with the config of the official code.

    arguments: options of a run's config, which decide over what the file says; with `--config` they
    are all, and the weights must fit. The same command again finds the run there. UserError,
    before anything is written, for a file that is no checkpoint, for weights that do not fit, and
    for an option that must be given.
    """
    source = read(file)
    checkpoint = recognise(source, kind, weights)
    given = _given(arguments)
    assumed: list[str] = []
    masks: Tensor | None = None
    if "config" in given:
        stated: dict[str, Any] = {}
    elif OWN in checkpoint.metadata:
        stated, masks = _exported(checkpoint)
    elif checkpoint.kind == OWN:
        raise UserError(f"{checkpoint.path} is of a run of dtr_lightning: give --config its config")
    else:
        stated, assumed, masks = official_options(checkpoint, given)
    run = Run(out)
    with tempfile.TemporaryDirectory() as folder:
        if masks is not None:
            stated["router.path"] = str(Path(folder) / "masks.npy")
            np.save(stated["router.path"], masks.numpy())
        config = parse(make_parser(), _words(stated, given, arguments)).config
        if config["experts"] != 1:
            raise UserError("a checkpoint is of one network: leave out --experts")
        experiment = Experiment(config)
        fit_weights(
            experiment.network, checkpoint.state, checkpoint.path, optional=_derived(experiment)
        )
        contents = contents_of(config, experiment.data)
    with checkpoint.path.open("rb") as opened:
        contents["imported"] = file_digest(opened, "sha256").hexdigest()[:12] + checkpoint.which
    if masks is not None:
        config["router"]["init_args"]["path"] = str(run.path.absolute() / "masks.npy")
    _write(run, experiment, config, contents, checkpoint, masks)
    return Imported(
        checkpoint, [name for name in assumed if name.split()[0] not in given], experiment, run
    )


def _derived(experiment: Experiment) -> set[str]:
    """Returns names that a file need not have: what a router derives, and fixed positions."""
    network = experiment.network
    names = {f"router.{name}" for name, _ in network.router.named_buffers()}
    return names | {name for name, p in network.named_parameters() if not p.requires_grad}


def _given(arguments: Sequence[str]) -> dict[str, str]:
    """Returns the options that a person gave, as text, by dotted name."""
    given = {}
    for word, following in pairwise([*arguments, ""]):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            given[name] = value if equals else following
    return given


def _words(
    stated: Mapping[str, Any], given: Mapping[str, str], arguments: Sequence[str]
) -> list[str]:
    """Returns a person's options, and what a file says beside them: its choices come first.

    Of a choice that a person names, as `--model DiT_XL`, the options that it takes remain; of
    another data set none.
    """
    choices, own = [], []
    for name, value in stated.items():
        axis, _, option = name.partition(".")
        if name in given or (option and axis == "data" and "data" in given):
            continue
        if option and axis in given and axis in AXES:
            takes = options(AXES[axis][0], given[axis]) if "." not in given[axis] else set()
            sized = given[axis].startswith("DiT_") and option in SIZED
            if option not in takes or sized:
                continue
        word = f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        (own if option else choices).append(word)
    return [*choices, *arguments, *own]


def _exported(checkpoint: Checkpoint) -> tuple[dict[str, Any], Tensor | None]:
    """Returns the options in the header of a file of export.py, and its masks if it has some.

    They are a file's: only our own classes and plain values are taken.
    """
    try:
        stated = json.loads(checkpoint.metadata[OWN])
        assert isinstance(stated, dict)
    except (ValueError, AssertionError, RecursionError) as error:
        raise UserError(f"{checkpoint.path}: its header is damaged") from error
    for name, value in stated.items():
        axis, _, option = name.partition(".")
        known = axis in {*AXES, "module", "evaluation", "trainer"} and option not in RESERVED
        if not known or "." in option or isinstance(value, dict):
            raise UserError(f"{checkpoint.path}: its header has an unknown option {name[:60]!r}")
        if name in AXES and not str(value).isidentifier():
            raise UserError(
                f"{checkpoint.path} is no plain checkpoint, and was not loaded: it would import "
                f"{str(value)[:120]}; give --{name} NAME"
            )
    if stated.get("router") != "FixedMasks":
        return FEATURES | stated, None
    table = checkpoint.path.with_name("masks.npy")
    try:
        return FEATURES | stated, torch.from_numpy(np.load(table, allow_pickle=False)).bool()
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise UserError(f"{table} cannot be read: {error}") from error


def _write(
    run: Run,
    experiment: Experiment,
    config: Config,
    contents: Mapping[str, str],
    checkpoint: Checkpoint,
    masks: Tensor | None,
) -> None:
    which = contents["imported"]
    # without meta.json it is another process's that begins, or was killed as it began
    if run.config_file.exists() and run.meta and run.contents.get("imported") != which:
        raise UserError(f"{run.path} holds another run; choose another --out")
    run.check(config, contents)
    with run.lock():
        run.prepare(config, contents, experiment.data.record())
        if run.last.exists():
            return
        if masks is not None:
            with replacing(run.path / "masks.npy") as part, part.open("wb") as file:
                np.save(file, masks.numpy())
        state = {
            name: weight.contiguous() for name, weight in experiment.module.state_dict().items()
        }
        content = {
            "state_dict": state,
            "current_model_state": state,
            "global_step": config["trainer"]["max_steps"],
            "epoch": 0,
        }
        imported = {
            "file": checkpoint.path.name,
            "kind": checkpoint.kind,
            "weights": checkpoint.which,
        }
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        run.update_meta(status="imported", imported=imported, finished=now, **provenance())
        last = run.last
        with telling_of_disk(last), replacing(last) as part, part.open("wb") as file:
            torch.save(content, file)
