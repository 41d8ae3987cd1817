"""The exponential moving average of the weights, which evaluation uses."""

__all__ = ["EMA"]

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dtr_lightning.training.module import DiffusionModule


class EMA(WeightAveraging):
    """Exponential moving average of the parameters after every step, all tensors in one call.

    It starts at the initial weights; with warm-up the decay of update n is at most
    (1 + n) / (10 + n). As with any WeightAveraging, a checkpoint's `state_dict` is the average and
    `current_model_state` are the raw weights. Lightning's own EMA averages integer buffers, and
    leaves the average on the CPU when training is on a GPU.
    """

    _latest_update_step: int

    def __init__(self, decay: float, warmup: bool) -> None:
        super().__init__(use_buffers=False)
        self.decay, self.warmup = decay, warmup

    @property
    def module(self) -> DiffusionModule:
        """The module with the averaged weights."""
        assert self._average_model is not None, "the average exists from the start of training"
        return self._average_model.module

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the average, from the initial weights on."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._average_model.n_averaged.fill_(1)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follows the module to its device; its count stays, for free, on the CPU."""
        self.module.to(pl_module.device)
        # listed once: to walk the modules at every step takes longer than the update itself
        networks = self.module.model, pl_module.model
        self.average, self.current = (list(network.parameters()) for network in networks)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Updates the average, if the optimiser made a step."""
        if trainer.global_step > self._latest_update_step:
            self.update(pl_module)
            self._latest_update_step = trainer.global_step

    @torch.no_grad()
    def update(self, current: DiffusionModule) -> None:
        """Moves the average of the network on; learned loss weights and masks are copied."""
        n = int(self._average_model.n_averaged)
        decay = min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
        get_ema_multi_avg_fn(decay)(self.average, self.current, n)
        for old, new in zip(_state(self.module), _state(current), strict=True):
            old.copy_(new)
        self._average_model.n_averaged += 1


def _state(module: DiffusionModule) -> list[Tensor]:
    """Returns what changes from step to step but is no average: masks and learned loss weights."""
    return [*module.model.router.buffers(), *module.loss_weight.parameters()]
