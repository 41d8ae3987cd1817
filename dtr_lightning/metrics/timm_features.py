"""The pooled features of timm's models."""

__all__ = ["TimmFeatures"]

import difflib
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtr_lightning.errors import UserError, choices
from dtr_lightning.metrics.features import Features, digest, rgb, unreadable


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
        weights: str | Path | None = None,
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
            raise UserError("give --features.weights or --features.pretrained, not both")
        if weights and not Path(weights).is_file():
            raise UserError(f"weights {weights} do not exist")
        self.model = model
        self.net = self._create(pretrained)
        if weights:
            self._load(weights)
        self.random = not (weights or pretrained)
        self.name, self.which_weights = self._names(weights, pretrained)
        config = timm.data.resolve_model_data_config(self.net)
        self.input_size = tuple(config["input_size"][1:])
        if size:
            self._set_size(size)
            self.name += f"_{size}px"
        self.resize = "bilinear to {}x{}, no antialiasing".format(*self.input_size)
        for key in ("mean", "std"):
            value = torch.tensor(config[key]).view(1, -1, 1, 1) * 255
            self.register_buffer(key, value, persistent=False)
        self.freeze()
        with torch.no_grad():
            probe = torch.zeros(1, 3, *self.input_size, dtype=torch.uint8)
            self.num_features = self(probe).shape[1]

    @property
    def extractor(self) -> str:
        """What computes the features, in words."""
        return f"timm {self.model}, pooled"

    def forward(self, images: Tensor) -> Tensor:
        """Returns the pooled features float32 (N, num_features)."""
        x = self._resized(rgb(images).float())
        return self.net((x - self.mean) / self.std).float()

    def _resized(self, x: Tensor) -> Tensor:
        """Returns images (N, 3, H, W) in 0..255 at the network's size."""
        if x.shape[-2:] == self.input_size:
            return x
        return F.interpolate(x, self.input_size, mode="bilinear", antialias=False)

    def _create(self, pretrained: bool) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                return timm.create_model(self.model, pretrained=pretrained, num_classes=0)
            except Exception as error:  # of the hub, the network or timm: each has its own
                raise UserError(
                    f"timm cannot make {self.model} ({type(error).__name__}); check the name's tag"
                    + (
                        " and the network, or give a local file: --features.weights FILE"
                        if pretrained
                        else ""
                    )
                ) from error

    def _names(self, weights: str | Path | None, pretrained: bool) -> tuple[str, str]:
        """Returns the score's name and which weights, in words."""
        if weights:
            return f"fd_{self.model}_{Path(weights).stem}", f"sha256 {digest(weights)}"
        if pretrained:
            return f"fd_{self.model}", f"timm's {self.net.pretrained_cfg.get('tag') or 'own'}"
        return f"fd_{self.model}_untrained", "random, seed 0"

    def _set_size(self, size: int) -> None:
        self.input_size = (size, size)
        if not self.net.pretrained_cfg.get("fixed_input_size"):
            return
        try:  # a transformer: its positions are resampled
            self.net.set_input_size(self.input_size)
        except (AttributeError, AssertionError) as error:
            raise UserError(
                f"{self.model} cannot take images of {size} pixels; leave features.size out"
            ) from error

    def _load(self, weights: str | Path) -> None:
        try:
            state = timm.models.load_state_dict(weights, use_ema=False, weights_only=True)
        except Exception as error:
            raise unreadable(weights, error) from error
        heads = self.net.pretrained_cfg.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        if "mask_token" in state:  # DINOv2's own file
            state = timm.models.vision_transformer.checkpoint_filter_fn(state, self.net)
        state = {key: v for key, v in state.items() if key.rpartition(".")[0] not in heads}
        try:
            self.net.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{weights} does not hold the weights of this model") from error
