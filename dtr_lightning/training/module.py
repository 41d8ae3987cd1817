"""The LightningModule: one denoising network, its diffusion and its loss weight."""

__all__ = ["Batch", "DiffusionModule", "Losses"]

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from dtr_lightning.data.captions import Captions
from dtr_lightning.data.codec import Codec, Pixels
from dtr_lightning.diffusion import Process, clusters
from dtr_lightning.diffusion.samplers import IndexedNoise
from dtr_lightning.errors import UserError
from dtr_lightning.models import Denoiser, evaluation_mode
from dtr_lightning.objectives import Gradients, Joint, LossWeight
from dtr_lightning.seeds import seed_of

GOLDEN_RATIO = 0.6180339887498949  # its multiples modulo 1 fill [0, 1) evenly
Batch = tuple[Tensor, Tensor]  # what is stored of images (N, ...), labels (N,) or tokens


class Losses(NamedTuple):
    """Per-sample losses (N,) of a batch at its tasks t (N,)."""

    t: Tensor
    mse: Tensor
    vb: Tensor


class Share(NamedTuple):
    """Which elements of a step's batch a process works on: every `parts`-th, from its own on."""

    rank: int
    world: int
    accumulate: int

    @property
    def parts(self) -> int:
        """Into how many parts a batch is split."""
        return self.world * self.accumulate

    def first(self, batch_idx: int) -> int:
        """Returns the first element of this process's part number batch_idx."""
        return batch_idx % self.accumulate * self.world + self.rank


class DiffusionModule(LightningModule):
    """Trains a network on all tasks of a process (defaults of Appendix C).

    No hidden state: the tasks, noise, captions and label dropout of a step are a function of (seed,
    step, index in the batch), so a resumed run equals an uninterrupted one, processes and
    accumulation change only rounding, and routers are compared in pairs. Dropout inside a network
    is drawn by each part of the batch for itself.

    Gradients other than Joint take their step by manual optimisation. Captions turn labels into
    text. A codec turns what is stored into the x_0 that the network sees.

    Args:
        lr: AdamW's learning rate, > 0.
        betas: AdamW's decay of both moments, each in [0, 1).
        weight_decay: AdamW's, 0 or more.
        lr_warmup: steps in which the learning rate rises linearly to lr; 0: none, as in the paper.
        lr_decay: steps after these in which it falls to 0 by half a cosine; 0: it stays.
        ema_decay: of the average weights, which evaluation uses, in [0, 1).
        ema_warmup: bounds the decay of update n = 1, 2, ... by (1 + n) / (10 + n); short runs need
            it.
        compile: whether torch.compile is used; a start takes longer, a step less. blocks: on each
            block for itself, so that a deep DiT starts sooner than compiled whole (true).
    """

    def __init__(
        self,
        model: Denoiser,
        diffusion: Process,
        loss_weight: LossWeight,
        gradients: Gradients | None = None,
        captions: Captions | None = None,
        codec: Codec | None = None,
        seed: int = 0,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        ema_decay: float = 0.9999,
        ema_warmup: bool = False,
        compile: bool | Literal["blocks"] = False,
        lr_warmup: int = 0,
        lr_decay: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < lr < float("inf"):
            raise UserError(f"lr must be positive and finite; got {lr}")
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"module.betas must lie in [0, 1); got {tuple(betas)}")
        if not 0 <= weight_decay < float("inf"):
            raise UserError(f"weight_decay must be 0 or more and finite; got {weight_decay}")
        for name, steps in (("lr_warmup", lr_warmup), ("lr_decay", lr_decay)):
            if steps < 0:
                raise UserError(f"module.{name} must be 0 (none) or more steps; got {steps}")
        if not 0 <= ema_decay < 1:
            raise UserError(f"ema_decay must lie in [0, 1); got {ema_decay}")
        self.model, self.diffusion, self.loss_weight = model, diffusion, loss_weight
        self.gradients, self.captions = gradients or Joint(), captions
        self.codec = codec or Pixels()
        self.loss_weight.bind(diffusion)
        self.gradients.bind(diffusion.log_snr(), diffusion.tasks)
        self.automatic_optimization = self.gradients.joint
        self.clip: float | None = None  # of the gradient's norm under manual optimisation
        self.share = Share(0, 1, 1)
        self.seed, self.lr, self.weight_decay = seed, lr, weight_decay
        self.betas = (betas[0], betas[1])
        self.lr_warmup, self.lr_decay = lr_warmup, lr_decay
        self.ema_decay, self.ema_warmup = ema_decay, ema_warmup
        if compile:
            compiled = self.model.compile_blocks if compile == "blocks" else self.model.compile
            compiled(fullgraph=True)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Returns the network's prediction for x (N, C, H, W), original t (N,), labels y (N,)."""
        return self.model(x, t, y)

    def condition(self, labels: Tensor, which: Tensor | None = None) -> Tensor:
        """Returns what the network is told for labels (N,): these, or tokens (N, L_text, C_text).

        which (N,) chooses among the captions of a label. Tokens, read from a store or made of a
        text, are themselves.
        """
        if captions := self.captions_of(labels):
            return captions(labels, which)
        return labels.float() if labels.is_floating_point() else labels

    def captions_of(self, labels: Tensor) -> Captions | None:
        """Returns what tells labels by captions; None where none does, or these are its tokens."""
        return None if labels.is_floating_point() else self.captions

    def drop_labels(self, y: Tensor, uniform: Tensor) -> Tensor:
        """Returns conditions (N, ...), that for none where uniform (N,) < class_dropout_prob."""
        drop = uniform < self.model.class_dropout_prob
        return torch.where(drop.view(-1, *[1] * (y.ndim - 1)), self.model.null(y), y)

    def losses(self, x0: Tensor, t: Tensor, y: Tensor, noise: Tensor) -> Losses:
        """Returns the per-sample losses (N,) of images x0 (N, C, H, W) at tasks t, with noise."""
        x_t = self.diffusion.q_sample(x0, t, noise)
        mse, vb = self.diffusion.losses(self.model(x_t, t, y), x0, t, noise)
        return Losses(t, mse, vb)

    def on_fit_start(self) -> None:
        """Learns which part of every batch this process works on."""
        trainer = self.trainer
        self.share = Share(trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Sets the random state that belongs to this step, and lets the router change its masks."""
        self._set_random_state(0)
        if batch_idx % self.share.accumulate == 0:
            self.model.router.advance(self.global_step, self.model.embed)

    def _set_random_state(self, part: int) -> None:
        seed = seed_of(self.seed, self.global_step, part) >> 1
        # torch.manual_seed would seed every kind of device, which takes 2 % of a small step
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Returns the loss, and the per-sample losses for the record.

        What is random is drawn for the whole batch of the step, of which this part is kept.
        """
        stored, labels = batch
        first, parts = self.share.first(batch_idx), self.share.parts
        n, mine, device = len(labels) * parts, slice(first, None, parts), labels.device

        def randn(shape: torch.Size) -> Tensor:
            return torch.randn(n, *shape[1:], device=device)[mine]

        x0 = self.codec.sample(stored, randn)
        t = self._timesteps(n, device)[mine].contiguous()
        noise = randn(x0.shape)
        captions = self.captions_of(labels)
        which = captions.draw(n, device)[mine] if captions else None
        y = self.condition(labels, which)
        if self.model.has_null:
            y = self.drop_labels(y, torch.rand(n, device=device)[mine])
        if parts > 1:
            self._set_random_state(1 + first)
        if self.gradients.joint:
            loss, losses = self._loss(x0, t, y, noise)
        else:
            loss, losses = self._step_by_cluster(x0, t, y, noise)
        return {"loss": loss, "losses": Losses(t, losses.mse.detach(), losses.vb.detach())}

    def _timesteps(self, n: int, device: torch.device) -> Tensor:
        if self.gradients.joint:
            return self.loss_weight.timesteps(n, device)
        return clusters.stratified(self.diffusion, n, self.gradients.intervals, device)

    def _loss(self, x0: Tensor, t: Tensor, y: Tensor, noise: Tensor) -> tuple[Tensor, Losses]:
        losses = self.losses(x0, t, y, noise)
        loss = self.loss_weight(losses.mse, losses.vb, t)
        return loss + self.model.router.penalty(t, self.model.embed), losses

    def _step_by_cluster(
        self, x0: Tensor, t: Tensor, y: Tensor, noise: Tensor
    ) -> tuple[Tensor, Losses]:
        parts = clusters.shares(len(t), self.gradients.clusters)
        chunks = list(zip(*(part.split(parts) for part in (x0, t, y, noise)), strict=True))
        done: list[Losses] = []

        def cluster_loss(i: int) -> Tensor:
            loss, losses = self._loss(*chunks[i])
            done.append(Losses(losses.t, losses.mse.detach(), losses.vb.detach()))
            return loss

        def all_reduce_mean(gradient: Tensor) -> Tensor:
            return self.trainer.strategy.reduce(gradient, reduce_op="mean")

        network, own = _trained(self.model), _trained(self.loss_weight)
        loss = self.gradients.combine(network, own, cluster_loss, all_reduce_mean, self.global_step)
        if self.clip:
            nn.utils.clip_grad_norm_(network, self.clip)
        self.optimizers().step()
        if self.lr_warmup or self.lr_decay:
            self.lr_schedulers().step()
        return loss, Losses(*map(torch.cat, zip(*done, strict=True)))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the norm of the network's gradient, and not that of a learned loss weight."""
        if gradient_clip_val:
            nn.utils.clip_grad_norm_(_trained(self.model), gradient_clip_val)

    @torch.no_grad()
    def val_losses(self, batches: Iterable[tuple[Tensor, Tensor, Tensor]], seed: int) -> Losses:
        """Returns the losses of images, labels and indices i, at tasks spread evenly over time.

        Task, noise and caption of image i are a function of (seed, i) alone, not of its batch or
        process: every router and every step is measured on the same ones.
        """
        parts: list[Losses] = []
        with evaluation_mode(self):
            for x0, y, i in batches:
                t = self.diffusion.timesteps_at((i.double() * GOLDEN_RATIO) % 1).to(self.device)
                noise = IndexedNoise(seed, i.tolist(), x0.shape[1:])().to(self.device)
                y = self.condition(y.to(self.device), i.to(self.device))
                parts.append(self.losses(x0.to(self.device), t, y, noise))
        return Losses(*map(torch.cat, zip(*parts, strict=True)))

    def lr_factor(self, step: int) -> float:
        """Returns what step 0, 1, ... multiplies lr by: warm-up, then half a cosine down to 0."""
        if step < self.lr_warmup:
            return (step + 1) / self.lr_warmup
        if not self.lr_decay:
            return 1.0
        done = min(1.0, (step - self.lr_warmup) / self.lr_decay)
        return (1 + math.cos(math.pi * done)) / 2

    def configure_optimizers(self) -> torch.optim.Optimizer | dict[str, Any]:
        """Returns AdamW; the loss weight's own parameters, if any, are a group of their own."""
        groups: list[dict[str, Any]] = [{"params": _trained(self.model)}]
        if own := _trained(self.loss_weight):
            groups.append({"params": own, **self.loss_weight.optimizer_options})
        optimizer = torch.optim.AdamW(
            groups, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True
        )
        if not (self.lr_warmup or self.lr_decay):
            return optimizer
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]
