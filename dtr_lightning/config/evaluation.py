"""How a run is scored: the options of `--evaluation`."""

__all__ = ["LARGEST_SEED", "EvaluationConfig"]

from typing import Literal, get_args

from dtr_lightning.data.base import Split
from dtr_lightning.data.codec import DecodePrecision
from dtr_lightning.errors import UserError, choices

Labels = Literal["proportional", "balanced"]
Precision = Literal["float32", "tf32", "bf16"]

LARGEST_SEED = 2**32 - 1


class EvaluationConfig:
    """How a run is scored; the sampler and the features are axes of their own.

    Args:
        n: samples of the final score; 0: no score, for an expert alone.
        every: training steps between two evaluations on the way; 0: none.
        every_n: samples of an evaluation on the way.
        reference: images that samples are compared with, at most, evenly spaced; 0: all.
        reference_split: which images these are, training or held-out ones (val); the floor is the
            score of the others.
        guidance: scale of classifier-free guidance, 0 or more; 1 is the conditional model.
        guidance_channels: that are guided: all (DTR), or the first three (official DiT).
        labels: of the samples: in the proportions of the training split, or balanced, all classes
            in turn.
        batch_size: images that are sampled at a time; changes no number.
        seed: of the samples' noise.
        precision: that the network samples in: float32, tf32 (products of an NVIDIA GPU), or bf16
            (mixed).
        decode_precision: that latents are decoded in; pixels need no decoding.
    """

    def __init__(
        self,
        n: int = 10_000,
        every: int = 0,
        every_n: int = 1_000,
        reference: int = 0,
        reference_split: Split = "train",
        guidance: float = 1.0,
        guidance_channels: Literal["all", "first3"] = "all",
        labels: Labels = "proportional",
        batch_size: int = 128,
        seed: int = 0,
        precision: Precision = "float32",
        decode_precision: DecodePrecision = "float32",
    ) -> None:
        for name, value in (("n", n), ("every_n", every_n), ("batch_size", batch_size)):
            if value < 2 and (name, value) != ("n", 0):
                raise UserError(f"evaluation.{name} must be at least 2; got {value}")
        if not 0 <= seed <= LARGEST_SEED:
            raise UserError(f"evaluation.seed must be 0 or more and at most 2^32 - 1; got {seed}")
        if not 0 <= guidance < float("inf"):
            raise UserError(f"evaluation.guidance must be 0 or more and finite; got {guidance}")
        if every < 0:
            raise UserError(f"evaluation.every must be 0 (never) or more; got {every}")
        self.n, self.every, self.every_n = n, every, every_n
        if reference < 0 or reference == 1:
            raise UserError(f"evaluation.reference must be 0 (all) or at least 2; got {reference}")
        self.reference = reference
        if reference_split not in get_args(Split):
            raise choices("evaluation.reference_split", reference_split, get_args(Split))
        self.reference_split = reference_split
        if labels not in get_args(Labels):
            raise choices("evaluation.labels", labels, get_args(Labels))
        self.guidance, self.guidance_channels, self.labels = guidance, guidance_channels, labels
        if precision not in get_args(Precision):
            raise choices("evaluation.precision", precision, get_args(Precision))
        if decode_precision not in (valid := get_args(DecodePrecision)):
            raise choices("evaluation.decode_precision", decode_precision, valid)
        self.precision, self.decode_precision = precision, decode_precision
        self.batch_size, self.seed = batch_size, seed
