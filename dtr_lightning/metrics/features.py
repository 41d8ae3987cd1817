"""What images are compared by: frozen networks that map an image to a feature vector.

The name of a score follows its features: "fid" is Inception's alone; a distance in other features
is another number and says so.
"""

__all__ = ["Features", "InceptionFeatures", "TimmFeatures"]

import difflib
from abc import ABC, abstractmethod
from hashlib import sha256
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtr_lightning.errors import UserError, choices


class Features(nn.Module, ABC):
    """A frozen feature extractor; a subclass is a choice of `--features` by its name.

    A constructor sets `name` (the score's name) and `num_features` and ends with `freeze()`.
    """

    name: str
    num_features: int

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Returns the features float32 (N, num_features) of uint8 images (N, C, H, W)."""

    def logits(self, features: Tensor) -> Tensor | None:
        """Returns class logits (N, classes) from features, None where there is no classifier."""
        return None

    def freeze(self) -> None:
        """Ends training for good: no gradients, evaluation mode."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Features":
        """Stays in evaluation mode, whatever module this one is a part of."""
        return super().train(False)


def rgb(images: Tensor) -> Tensor:
    """Returns images (N, 1 or 3, H, W) with three channels."""
    if images.shape[1] not in (1, 3):
        raise UserError(f"features need images of 1 or 3 channels, not {images.shape[1]}")
    return images.expand(-1, 3, -1, -1)


class TimmFeatures(Features):
    """The pooled features of any timm model, images resized and normalised as its config says.

    The resize is bilinear without antialiasing. Without weights the network is random (seed 0) and
    the name says "untrained": good for a test, no measure of quality.

    Args:
        model: timm's name of the model, e.g. resnet18 or vit_base_patch14_dinov2.lvd142m.
        weights: local weights of that model, .safetensors or .pt/.pth without code in it.
        pretrained: whether timm downloads its weights.
        size: pixels a side that images are resized to; the model's own by default.
    """

    def __init__(
        self,
        model: str = "resnet18",
        weights: str | None = None,
        pretrained: bool = False,
        size: int | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(model):
            near = difflib.get_close_matches(model, timm.list_models(), n=5)
            raise choices("timm model", model, near or ["the names of timm.list_models()"])
        if size is not None and size < 1:
            raise UserError(f"features.size must be at least 1 pixel; got {size}")
        if weights and pretrained:
            raise UserError("give features either weights or pretrained, not both")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                self.net = timm.create_model(model, pretrained=pretrained, num_classes=0)
            except Exception as error:  # of the hub, the network or timm: each has its own
                raise UserError(
                    f"timm cannot make {model} ({type(error).__name__}); check the name's tag"
                    + (" and the network, or give a local file as weights" if pretrained else "")
                ) from error
        if weights:
            self._load(weights)
            self.name = f"fd_{model}_{Path(weights).stem}"
        else:
            self.name = f"fd_{model}" + ("" if pretrained else "_untrained")
        config = timm.data.resolve_model_data_config(self.net)
        self.input_size = (size, size) if size else config["input_size"][1:]
        if size:
            self.name += f"_{size}px"
        for key in ("mean", "std"):
            value = torch.tensor(config[key]).view(1, -1, 1, 1) * 255
            self.register_buffer(key, value, persistent=False)
        self.freeze()
        with torch.no_grad():
            probe = torch.zeros(1, 3, *self.input_size, dtype=torch.uint8)
            self.num_features = self(probe).shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Returns the pooled features float32 (N, num_features)."""
        x = rgb(images).float()
        if x.shape[-2:] != self.input_size:
            x = F.interpolate(x, self.input_size, mode="bilinear", antialias=False)
        return self.net((x - self.mean) / self.std).float()

    def _load(self, weights: str) -> None:
        try:
            state = timm.models.load_state_dict(weights, use_ema=False, weights_only=True)
        except Exception as error:
            raise _unreadable(weights, error) from error
        heads = self.net.pretrained_cfg.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        state = {key: v for key, v in state.items() if key.rpartition(".")[0] not in heads}
        try:
            self.net.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{weights} does not hold the weights of this model") from error


class InceptionFeatures(Features):
    """Inception's 2,048 pooled features as FID defines them (TF1 graph and resize, Section 5.1).

    The resize inside is TF1's: bilinear, without antialiasing. Needs torch-fidelity; weights are
    downloaded by it unless a local copy of its file is given. Another file's score is not "fid".

    Args:
        weights: local copy of weights-inception-2015-12-05-6726825d.pth.
    """

    digest = "6726825d"
    num_features = 2048

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise UserError(
                "Inception features need torch-fidelity: pip install torch-fidelity"
            ) from error
        if weights:
            try:  # torch-fidelity itself would run code hidden in the file
                torch.load(weights, weights_only=True)
            except Exception as error:
                raise _unreadable(weights, error) from error
        try:
            self.net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], weights)
        except OSError as error:
            raise UserError(
                f"cannot download the Inception weights ({type(error).__name__}); "
                "give a local copy as weights"
            ) from error
        except RuntimeError as error:
            raise UserError(f"{weights} does not hold the Inception weights") from error
        known = not weights or sha256(Path(weights).read_bytes()).hexdigest()[:8] == self.digest
        self.name = "fid" if known else f"fd_inception_{Path(weights).stem}"
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Returns the pool_3 features float32 (N, 2048)."""
        return self.net(rgb(images))[0].flatten(1)


def _unreadable(path: str, error: Exception) -> UserError:
    if not Path(path).is_file():
        return UserError(f"weights {path} do not exist")
    return UserError(
        f"cannot read weights {path} ({type(error).__name__}): damaged, or with code in it; "
        "give a .safetensors or a plain state_dict"
    )
