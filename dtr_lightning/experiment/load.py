"""A trained run, ready to be sampled from or evaluated under another protocol."""

__all__ = ["TrainedRun", "other_protocol"]

import difflib
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from dtr_lightning.config.parser import Config, contents_of, make_parser, parse
from dtr_lightning.config.registry import class_of, instantiate, path_options
from dtr_lightning.data import VAE, Data
from dtr_lightning.data.base import Split
from dtr_lightning.data.captioned import StoredCaptions
from dtr_lightning.data.codec import Codec
from dtr_lightning.data.scan import few
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.blocks import Blocks
from dtr_lightning.experiment.evaluation import Report, check_precision, score, silent
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.experiment.notes import notes_of
from dtr_lightning.rundir.naming import evaluation_name, flatten, protocol
from dtr_lightning.rundir.run import Run, finite
from dtr_lightning.training.launch import ALONE, Place
from dtr_lightning.training.weights import load_average

OPTIONS = ("sampler", "features", "evaluation", "trainer.accelerator", "data.workers")


def other_protocol(
    run: Run, options: Sequence[str], own: Sequence[str] = ("--checkpoint",)
) -> Config:
    """Returns the run's config with another sampler, features or evaluation, or images elsewhere.

    UserError for any other option, with the valid ones, among them the command's `own`: what was
    trained cannot be changed.
    """
    paths = {f"data.{name}" for name in path_options(Data, run.config["data"]["class_path"])}
    for option in options:
        name = option[2:].partition("=")[0]
        if option.startswith("--") and not name.startswith(OPTIONS) and name not in paths:
            near = [key for key in flatten(run.config) if key.endswith(f".{name}")]
            near = [f"--{key}" for key in near if key.startswith(OPTIONS)]
            near = difflib.get_close_matches(f"--{name}", own, n=1) or near
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(
                f"{option} is no option here{hint}; valid: {', '.join(own)}, --sampler, --features "
                "and --evaluation with what belongs to them, --trainer.accelerator, --data.workers"
                + "".join(f", --{path}" for path in sorted(paths))
            )
    return parse(make_parser(), [f"--config={run.config_file}", *options]).config


class _StoredData(Data):
    """The data of a run as its start described them; images are read when they are asked for."""

    def __init__(self, run: Run, config: Config) -> None:
        arguments = config["data"].get("init_args") or {}
        super().__init__(**{k: arguments[k] for k in ("batch_size", "workers") if k in arguments})
        self.run, self.config = run, config
        described = run.meta["data"]
        self.in_channels, self.image_size = described["in_channels"], described["image_size"]
        self.num_classes = described["num_classes"]
        self.class_names = tuple(described["class_names"])
        if "codec" in described:
            made = class_of(Codec, described.get("codec_class", "VAE"))
            elsewhere = {"path": arguments["vae"]} if made is VAE and arguments.get("vae") else {}
            self.codec = made(**described["codec"] | elsewhere)
        if text := described.get("text"):
            clip = arguments.get("clip")
            self.captions = StoredCaptions.of_record(text, clip, lambda: self.data.table)

    def explain(self, error: UserError) -> UserError:
        """Returns the error in the words of the data themselves."""
        return self.data.explain(error)

    @property
    def name(self) -> str:
        """The name of the class that reads the images."""
        return self.config["data"]["class_path"].rpartition(".")[2]

    @cached_property
    def data(self) -> Data:
        """The images, checked to be of the classes that the run was trained on."""
        data: Data = instantiate(Data, self.config["data"])
        if data.class_names != self.class_names:
            raise UserError(
                f"the images have the classes {few(data.class_names)}; {self.run.path} was trained "
                f"on {few(self.class_names)}; restore the names, or say where its images are"
            )
        if data.shape != self.shape or data.image_shape != self.image_shape:
            raise UserError(
                f"the images are {_sizes(data)}; {self.run.path} was trained on {_sizes(self)}"
            )
        shapes = [d.captions.null.shape for d in (data, self) if d.captions is not None]
        if len({*shapes}) > 1:
            now, then = (" x ".join(map(str, shape)) for shape in shapes)
            raise UserError(
                f"the captions are of {now} features; {self.run.path} was trained on {then}"
            )
        now = contents_of({"data": self.config["data"]}, data)
        if any(self.run.contents.get(key, digest) != digest for key, digest in now.items()):
            logging.getLogger(__name__).warning(
                "note: the images are others than those that %s was trained on", self.run.path
            )
        return data

    def split(self, name: Split) -> Dataset:
        """Returns one split of the images."""
        return self.data.split(name)

    def class_counts(self) -> list[int]:
        """Returns the images of each class of the training split."""
        return self.data.class_counts()

    def digest(self) -> str:
        """Returns a digest of which images these are."""
        return self.data.digest()

    def reference_file(self, key: str) -> Path | None:
        """Returns where the images' own data keep what a score needs of them."""
        return self.data.reference_file(key)

    def describe(self) -> str:
        """Returns what is read, in one line."""
        return self.data.describe()

    def check(self, world: int = 1, accumulate: int = 1) -> None:
        """Raises UserError where the codec cannot be had; the images may be elsewhere."""
        self.codec.check()


def _sizes(data: Data) -> str:
    sizes = [" x ".join(map(str, shape)) for shape in (data.image_shape, data.shape)]
    return sizes[0] if sizes[0] == sizes[1] else f"{sizes[0]} in latents of {sizes[1]}"


class TrainedRun:
    """The network of a run, or its experts, with average weights, on one device.

    checkpoint is "last", or "step=N" where a milestone was kept (by every expert). Of several
    processes of a machine each takes a GPU, in turn by its local rank.
    """

    def __init__(
        self, run: Run, config: Config, checkpoint: str = "last", place: Place = ALONE
    ) -> None:
        self.place = place
        trainer = config["trainer"] | {"devices": 1, "num_nodes": 1, "strategy": "auto"}
        if place.local_rank and trainer["accelerator"] in ("auto", "gpu", "cuda"):
            if gpus := torch.cuda.device_count():
                trainer["devices"] = [place.local_rank % gpus]
        config = config | {"trainer": trainer}
        _note_edited_sources(run, config)
        # captions that no store holds are told by data that are there anyway
        described = run.meta.get("data") or {"captions": True}
        there = described["captions"] and "text" not in described
        data = None if there else _StoredData(run, config)
        self.experiment = Experiment(config, run.planned_steps, data)
        self.trainer = self.experiment.trainer([], [])
        check_precision(self.experiment.protocol.precision, self.device)
        self.module = self.experiment.module
        process = self.module.diffusion
        if process.tasks != (0, process.T):
            low, high = process.tasks
            raise UserError(
                f"{run.path} is an expert for [{low}, {high}): alone it cannot draw images"
            )
        self.run, self.step = run, load_average(run, self.module, checkpoint)
        self.module.to(self.device).eval()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.trainer.strategy.root_device

    @property
    def name(self) -> str:
        """The name of an evaluation: what identifies its protocol and the step."""
        return evaluation_name(self.experiment.describe(), self.step)

    def facts(self) -> dict[str, Any]:
        """Returns what `notes_of` judges the network by, but for its scores."""
        smoke = bool(self.run.meta.get("smoke"))
        return {**self.experiment.facts(self.step), "smoke": smoke}

    def sampling(self) -> dict[str, Any]:
        """Returns the part of the protocol that samples depend on, and not what they are for."""
        described = self.experiment.describe()
        of_score = ("features", "reference", "reference_split")
        return {k: v for k, v in described.items() if k.split(".")[0] not in of_score}

    def samples(self, **options: Any) -> Blocks:
        """Returns the samples of the protocol, to be drawn and scored; options are of `Blocks`."""
        stated = self.sampling()
        folder = self.run.evaluations / evaluation_name(stated, self.step)
        return Blocks(folder, self.experiment, self.module, stated, self.place, **options)

    def evaluate(self, report: Report = silent) -> dict[str, Any]:
        """Returns the results under the config's protocol, and stores them with the run.

        `report` hears of the network evaluations.
        """
        if (stored := self.run.evaluation(self.name)) is not None:
            return stored
        self.experiment.data.split("train")  # to compare with: a mistake is told before sampling
        with self.samples() as blocks:
            blocks.draw(report)
            return self.score(blocks)

    def score(self, blocks: Blocks, report: Report = silent) -> dict[str, Any]:
        """Returns the results of samples under the config's protocol, and stores them."""

        def scores() -> dict[str, Any]:
            numbers = score(self.experiment.scorer(self.trainer), blocks, report)
            protocol = {"protocol": self.experiment.describe()}
            return {"score_name": numbers.pop("name"), **numbers, **protocol}

        results = self.scored(self.name, blocks, scores, report)
        own = protocol(self.run.config) == protocol(self.experiment.config)
        if own and "imported" in self.run.meta and self.place.rank == 0:
            self.run.write_results(results)  # what its training would have ended with
        return results

    def scored(
        self,
        name: str,
        blocks: Blocks,
        scores: Callable[[], dict[str, Any]],
        report: Report = silent,
        anew: bool = False,
    ) -> dict[str, Any]:
        """Returns what `scores` makes of the blocks, and stores it as an evaluation of a name.

        Of several processes one computes it, the others read it. `anew` computes what is stored.
        """
        with blocks.scoring(report):
            if not anew and (stored := self.run.evaluation(name)) is not None:
                return stored
            blocks.mend(report)
            results = scores()
            protocol = {"protocol": results.pop("protocol")}
            results |= self.facts() | self.experiment.steps(self.step) | protocol
            results = finite(results | {"notes": [*notes_of(results).values()]})
            self.run.write_evaluation(name, results)
        return results


def _note_edited_sources(run: Run, config: Config) -> None:
    """Warns of a person's own classes whose file was edited since the run began."""
    now = contents_of({key: value for key, value in config.items() if key != "data"})
    for key, digest in now.items():
        axis, _, option = key.partition(".")
        if option == "source" and run.contents.get(key, digest) != digest:
            logging.getLogger(__name__).warning(
                "note: the file of %s has changed since %s was trained with it",
                config[axis]["class_path"],
                run.path,
            )
