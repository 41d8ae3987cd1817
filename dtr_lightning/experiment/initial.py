"""Training that starts from weights: `--init`."""

__all__ = ["refuse_imported", "start_from_init"]

import logging

from dtr_lightning.checkpoints.fitting import fit_weights
from dtr_lightning.checkpoints.layouts import KINDS, recognise
from dtr_lightning.checkpoints.reading import read
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.models import RangeExperts, SiT
from dtr_lightning.rundir.run import Run


def start_from_init(experiment: Experiment) -> None:
    """Loads the weights of `init` into the network, or into every expert; nothing without one.

    Of a training's weights the average is taken. What a router keeps beside parameters starts anew.
    Says in a line what was read, and in one for each kind what partial loading left out. UserError
    for weights of another network.
    """
    config, log = experiment.config, logging.getLogger(__name__)
    if "init" not in config:
        return
    file = read(config["init"])
    model = experiment.module.model
    networks = model.networks if isinstance(model, RangeExperts) else [model]
    kind = "sit" if isinstance(networks[0], SiT) else None
    checkpoint = recognise(file, kind)
    for network in networks:
        made_anew = {f"router.{name}" for name, _ in network.router.named_buffers()}
        state = {name: w for name, w in checkpoint.state.items() if name not in made_anew}
        partial = config.get("init_partial", False)
        lines = fit_weights(network, state, checkpoint.path, partial, made_anew)
    log.warning("note: training starts from %s, %s", checkpoint.path, KINDS[checkpoint.kind])
    for line in lines:
        log.warning("note: %s", line)


def refuse_imported(run: Run) -> None:
    """Raises UserError if a run was imported: it has no optimiser to go on with."""
    if "imported" in run.meta:
        raise UserError(
            f"{run.path} was imported, without the state of its optimiser, and cannot be trained "
            f"on; start from its weights: --init {run.path} with another --out"
        )
