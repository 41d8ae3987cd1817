"""Checkpoints in the official layouts, made of the golden weights; and what became of them."""

import numpy as np
import torch
from safetensors.torch import load_file

from dtr_lightning.experiment.importing import import_checkpoint
from dtr_lightning.experiment.load import TrainedRun, other_protocol
from tests.conftest import GOLDEN, golden


def weights(name):
    """Returns golden weights, float32, by their official names."""
    return {k: w.float() for k, w in load_file(GOLDEN / f"{name}.safetensors").items()}


def arrays(name):
    return {key: torch.from_numpy(np.asarray(a)) for key, a in golden(f"{name}.npz").items()}


def imported(file, out, *options, **named):
    """Returns the network of a run that a checkpoint became, and what the import says."""
    made = import_checkpoint(file, out, options, **named)
    return network(made.run), made


def network(run):
    return TrainedRun(run, other_protocol(run, [])).module.model.eval()
