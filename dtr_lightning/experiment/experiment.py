"""The parts of one experiment, made from its config."""

__all__ = ["Experiment"]

import contextlib
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from threading import Event
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor

from dtr_lightning.config.evaluation import EvaluationConfig
from dtr_lightning.config.parser import Config, instantiate
from dtr_lightning.config.trainer_options import OF_FIT
from dtr_lightning.data import Data
from dtr_lightning.diffusion import Process, clusters
from dtr_lightning.diffusion.samplers import Sampler
from dtr_lightning.errors import UserError
from dtr_lightning.expect import is_own
from dtr_lightning.experiment.evaluation import (
    Report,
    check_guidance,
    check_precision,
    evaluate,
    silent,
)
from dtr_lightning.experiment.own_classes import check_own, check_own_data
from dtr_lightning.experiment.planning import check_captions, network_options
from dtr_lightning.metrics import Features
from dtr_lightning.metrics.scorer import Scorer
from dtr_lightning.models import Denoiser, RangeExperts
from dtr_lightning.models.macs import count_macs, on_meta
from dtr_lightning.objectives import Gradients, LossWeight
from dtr_lightning.routing import NoRouting, Router
from dtr_lightning.routing.masks import mean_overlap
from dtr_lightning.rundir.naming import protocol
from dtr_lightning.training.callbacks import (
    AtomicCheckpointIO,
    Checkpoints,
    all_reduce_sum,
    loss_per_timestep_bin,
    scalars,
)
from dtr_lightning.training.launch import make_trainer
from dtr_lightning.training.loggers import check_loggers
from dtr_lightning.training.module import DiffusionModule

HELD_OUT_BATCH = 128
VAL_IMAGES = 2048  # of the held-out loss; smaller splits are repeated at other tasks


class Experiment:
    """Data, network with its router, diffusion, sampler and score of a config.

    The weights depend on the seed alone: the router is made apart and built last, so routers
    without parameters start from the same network.

    planned_steps is the max_steps that the run began with, if it is to be trained longer; data is
    made from the config unless given. With `meta` the network is on the meta device, without
    memory, and there is no score: to count what the experiment takes.
    """

    def __init__(
        self,
        config: Config,
        planned_steps: int | None = None,
        data: Data | None = None,
        meta: bool = False,
    ) -> None:
        self.config, self.meta = config, meta
        self.planned_steps = planned_steps or config["trainer"]["max_steps"]
        self.data: Data = data or instantiate(Data, config["data"])
        self.data.seed = config["seed"]
        check_own_data(self.data)
        self.data.check()
        process: Process = instantiate(Process, config["diffusion"])
        seed, captions = config["seed"], self.data.captions
        ranges = clusters.ranges(process.T, config["experts"])
        networks = [self._network(process) for _ in ranges]
        model = RangeExperts(networks, ranges) if len(networks) > 1 else networks[0]
        self.networks = len(networks)
        check_captions(networks[0], self.data)
        self.module = DiffusionModule(
            model,
            process,
            instantiate(LossWeight, config["loss_weight"]),
            instantiate(Gradients, config["gradients"], seed=seed),
            captions,
            self.data.codec,
            seed=seed,
            **config["module"],
        )
        self.sampler: Sampler = instantiate(Sampler, config["sampler"])
        self.sampler.check(process)
        if getattr(self.sampler, "clip", True) is None:
            self.sampler.clip = self.data.codec.bounded
        self.protocol = EvaluationConfig(**config["evaluation"])
        check_guidance(model, self.protocol.guidance)
        self.sampler_steps = self.sampler.evaluations(process)
        if not meta:  # weights may have to be downloaded
            self.features: Features = instantiate(Features, config["features"])
        self._scorer: Scorer | None = None

    def _network(self, process: Process) -> Denoiser:
        config = self.config
        seed, steps = config["seed"], self.planned_steps
        torch.manual_seed(seed)
        router: Router = instantiate(Router, config["router"], seed=seed, steps=steps)
        if self.meta and router.masks_only:
            router = NoRouting()  # tables take seconds, and there is nothing in them to count
        options = network_options(self.data, process)
        # a person's own class may look at values when it is made
        own = is_own(router) or "." in config["model"]["class_path"]
        with torch.device("meta") if self.meta and not own else contextlib.nullcontext():
            model: Denoiser = instantiate(Denoiser, config["model"], **options, router=router)
        if self.meta:
            model.to("meta")
        if model.router.tasks != process.T:
            raise UserError(
                f"{type(model).__name__} binds its router to {model.router.tasks} tasks, the "
                f"diffusion has {process.T}; its constructor must take `tasks` for Router.bind"
            )
        return model

    @torch.no_grad()
    def check(self) -> None:
        """Raises UserError for features that do not fit the images, or devices that are not there.

        A run asks before it starts: otherwise it would be told at its first evaluation.
        """
        trainer = self.trainer([], [])
        check_loggers(self.config.get("logger", ()))
        check_precision(self.protocol.precision, trainer.strategy.root_device)
        check_own(self.data, self.module, self.sampler, self.features)
        if self.protocol.n and (size := len(self.data.split("train"))) < 2:
            raise UserError(f"a score needs at least 2 training images to compare with, not {size}")
        self.features(torch.zeros(1, *self.data.image_shape, dtype=torch.uint8))

    def trainer(
        self,
        loggers: Sequence[Logger],
        callbacks: Sequence[Callback],
        stop: Event | None = None,
    ) -> Trainer:
        """Returns the Lightning trainer of the config; of several experts it trains none.

        `stop` ends its wait for the other processes of the run.
        """
        options = {k: v for k, v in self.config["trainer"].items() if k not in OF_FIT}
        if self.networks > 1:
            options["max_steps"] = 0
        if not self.module.automatic_optimization:  # Lightning leaves the clipping to the module
            self.module.clip = options.pop("gradient_clip_val")
        trainer = make_trainer(
            options,
            stop,
            logger=list(loggers),
            callbacks=list(callbacks),
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=any(isinstance(c, Checkpoints) for c in callbacks),
            limit_val_batches=0,
        )
        self.data.check(trainer.world_size, trainer.accumulate_grad_batches)
        least = {name: getattr(self.protocol, name) for name in ("n", "every_n", "reference")}
        for name, number in least.items():
            if 0 < number < trainer.world_size:
                raise UserError(
                    f"evaluation.{name} {number} cannot be shared by {trainer.world_size} ranks"
                )
        parts = trainer.world_size * trainer.accumulate_grad_batches
        share = self.data.batch_size // parts
        self.module.loss_weight.check(share)
        self.module.gradients.check(share)
        strata = max(self.module.loss_weight.strata, self.module.gradients.strata)
        if parts > 1 and share % strata:
            raise UserError(
                f"batch size {self.data.batch_size} in {parts} parts does not give {strata} "
                f"clusters equally many samples each; give a multiple of {parts * strata}"
            )
        return trainer

    def scorer(self, trainer: Trainer) -> Scorer:
        """Returns the score on the trainer's device; its reference is computed once."""
        if self._scorer is None:
            device = trainer.strategy.root_device
            self._scorer = Scorer(
                self.features,
                self.data,
                device if device.type != "mps" else "cpu",  # MPS has no float64
                limit=self.protocol.reference or None,
                split=self.protocol.reference_split,
            )
        return self._scorer

    def evaluate(
        self, trainer: Trainer, module: DiffusionModule, n: int, keep: int, report: Report = silent
    ) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Returns the score of n samples, and the first `keep` images and labels."""
        scores, images, labels = evaluate(
            module,
            self.data,
            self.sampler,
            self.scorer(trainer),
            self.protocol,
            n,
            keep,
            trainer.global_rank,
            trainer.world_size,
            report,
        )
        return {"score_name": scores.pop("name"), **scores}, images, labels

    def val_losses(self, trainer: Trainer, module: DiffusionModule) -> dict[str, float]:
        """Returns the unweighted held-out loss, over all tasks and per eighth of the timeline.

        Image i of N is measured as i, i + N, i + 2N ...: equally by any number of processes.
        """
        rank, world = trainer.global_rank, trainer.world_size
        loader = self.data.stored_batches("val", VAL_IMAGES, rank, world)
        stored, labels = map(torch.cat, zip(*loader, strict=True))
        count = min(len(self.data.split("val")), VAL_IMAGES)
        passes = torch.arange(max(1, VAL_IMAGES // count))
        indices = (torch.arange(count)[rank::world] + count * passes[:, None]).flatten()
        order = torch.arange(len(labels)).repeat(len(passes))
        batches = (
            (self.data.codec.mean(stored[own]), labels[own], i)
            for own, i in zip(
                order.split(HELD_OUT_BATCH), indices.split(HELD_OUT_BATCH), strict=True
            )
        )
        losses = module.val_losses(batches, seed=self.protocol.seed)
        sums = all_reduce_sum(trainer, loss_per_timestep_bin(losses, module.diffusion.T))
        return scalars(sums, module.diffusion.T, "val")

    def work(self, upto: int | None = None) -> int:
        """Returns the network evaluations of single images up to a step; None: in the whole run."""
        steps = self.config["trainer"]["max_steps"] if upto is None else upto
        every = self.protocol.every if self.protocol.n and self.networks == 1 else 0
        on_the_way = steps // every * self.protocol.every_n if every else 0
        final = self.protocol.n if upto is None else 0
        return self.training_work(steps) + self.sampling_work(on_the_way + final)

    def training_work(self, steps: int | None = None) -> int:
        """Returns those of training steps, of every expert: one forward and two of the backward."""
        steps = self.config["trainer"]["max_steps"] if steps is None else steps
        return 3 * self.data.batch_size * steps * self.networks

    def steps(self, step: int | None = None) -> dict[str, int]:
        """Returns the `steps` of all training up to a step, and those per expert if there are."""
        step = self.config["trainer"]["max_steps"] if step is None else step
        each = {"steps_per_expert": step} if self.networks > 1 else {}
        return {"steps": step * self.networks, **each}

    def sampling_work(self, n: int | None = None) -> int:
        """Returns the network evaluations of single images that n samples take."""
        n = self.protocol.n if n is None else n
        return n * self.sampler_steps * (1 if self.protocol.guidance == 1 else 2)

    def parameters(self) -> int:
        """Returns the number of the network's parameters, fixed positions included."""
        return sum(p.numel() for p in self.module.model.parameters())

    @property
    def network(self) -> Denoiser:
        """The network, or the first of several experts."""
        model = self.module.model
        return model.networks[0] if isinstance(model, RangeExperts) else model

    def overlap(self) -> float | None:
        """Returns the share of channels that two tasks both read: |A_i and A_j| / C over i != j.

        The mean over the blocks; None for a router without fixed masks, or of a single task.
        """
        router = self.network.router
        every = [router.table(block) for block in range(router.blocks)]
        tables = [table for table in every if table is not None and len(table) > 1]
        if len(tables) < len(every):
            return None
        return fmean(mean_overlap(table) / table.shape[1] for table in tables)

    def macs(self) -> int | None:
        """Returns the multiply-adds of the network, or of one expert, for one image.

        None where a person's own class looks at values, which counting has not.
        """
        return self.counted(lambda: count_macs(on_meta(self.network), *self.inputs(1)))

    def inputs(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns x (n, C, H, W), t (n,) and y (n,) or tokens (n, L_text, C_text), on meta."""
        captions = self.data.captions
        t = torch.zeros(n, dtype=torch.long, device="meta")
        y = t if captions is None else captions.null.to("meta").expand(n, -1, -1)
        return torch.empty(n, *self.data.shape, device="meta"), t, y

    def counted(self, count: Callable[[], int]) -> int | None:
        """Returns a count on the meta device, None where a person's own class looks at values."""
        try:
            return count()
        except Exception:
            if is_own(self.network) or is_own(self.network.router):
                return None
            raise

    def facts(self, step: int | None = None) -> dict[str, Any]:
        """Returns what `notes_of` judges a network of this step by, but for its scores."""
        module, steps = self.config["module"], self.config["trainer"]["max_steps"]
        decay = 0.0 if module["ema_warmup"] else module["ema_decay"]
        facts = {"initial_share": decay ** (steps if step is None else step)}
        if not self.protocol.n:
            return facts
        counts = self.data.class_counts()
        shares = [count / sum(counts) for count in counts]
        even = 1 / len(shares)
        drawn = shares if self.describe()["labels"] == "proportional" else [even] * len(shares)
        return facts | {
            "num_classes": len(counts),
            "class_images": [min(counts), max(counts)],
            "imbalance": sum(abs(share - even) for share in shares) / 2,
            "chance": sum(share**2 for share in drawn),
        }

    def scoring(self) -> dict[str, Any]:
        """Returns how many images the score compares, and in which features; nothing without one.

        It is known before the first sample is drawn.
        """
        if not (n := self.protocol.n):
            return {}
        sizes = {name: len(self.data.split(name)) for name in ("train", "val")}
        split, limit = self.protocol.reference_split, self.protocol.reference
        compared = sorted(sizes, key=lambda name: name != split)  # the reference first
        reference_n, floor_n = (min(sizes[name], limit or sizes[name]) for name in compared)
        counts = {"reference_n": reference_n, "floor_n": floor_n, "held_out_n": sizes["val"]}
        return {"n": n, **counts, **self.features.describe()}

    def describe(self) -> Mapping[str, Any]:
        """Returns the protocol that the score is stored with."""
        clip = getattr(self.sampler, "clip", None)
        return (
            protocol(self.config)
            | ({} if clip is None else {"sampler.clip": clip})
            | self.data.codec.describe()
            | ({} if self.data.captions is None else self.data.captions.describe())
            | {"sampler_steps": self.sampler_steps, "weights": "ema"}
            | {"precision": self.protocol.precision}
        )
