"""bf16-mixed trains as float32 does, to its precision; gradients are clipped only when asked."""

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback

from dtr_lightning.experiment.experiment import Experiment


def follow(config):
    """Trains and returns the losses of all steps, and the module."""
    experiment, losses = Experiment(config), []

    def after(trainer, module, outputs, *_):
        losses.append(outputs["loss"].item())

    callback = LambdaCallback(on_train_batch_end=after)
    experiment.trainer([], [callback]).fit(experiment.module, datamodule=experiment.data)
    return losses, experiment.module


@pytest.mark.parametrize("router", ["NoRouting", "DTR", "RTR"])
def test_bf16_follows_float32(tiny, router):
    single, _ = follow(tiny(router=router))
    mixed, module = follow(tiny(router=router, trainer__precision="bf16-mixed"))
    torch.testing.assert_close(mixed, single, rtol=0.05, atol=0.02)
    assert all(p.dtype is torch.float32 for p in module.parameters())
    assert mixed != single


def test_gradients_are_clipped_only_when_asked(tiny):
    free, _ = follow(tiny())
    loose, _ = follow(tiny(trainer__gradient_clip_val=1e6))
    tight, _ = follow(tiny(trainer__gradient_clip_val=1e-9))
    assert free == loose
    assert free != tight
