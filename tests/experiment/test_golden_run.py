"""Twenty training steps: a refactoring that moves these losses is not a refactoring."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback

from dtr_lightning.experiment.experiment import Experiment
from tests.conftest import GOLDEN

FILE = GOLDEN / "run" / "losses.json"


def losses(config):
    experiment, seen = Experiment(config), []
    record = LambdaCallback(
        on_train_batch_end=lambda trainer, module, outputs, *_: seen.append(outputs["loss"].item())
    )
    experiment.trainer([], [record]).fit(experiment.module, datamodule=experiment.data)
    return seen


@pytest.mark.parametrize("router", ["NoRouting", "DTR", "RTR"])
@pytest.mark.parametrize("loss_weight", ["Constant", "MinSNR"])
def test_losses_of_twenty_steps(tiny, router, loss_weight):
    config = tiny(router=router, loss_weight=loss_weight, trainer__max_steps=20)
    stored = json.loads(FILE.read_text())[f"{router} {loss_weight}"]
    torch.testing.assert_close(losses(config), stored, rtol=2e-3, atol=1e-5)
