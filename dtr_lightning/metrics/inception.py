"""Inception as FID defines it: torch-fidelity's port of the TF1 graph, with its weights."""

__all__ = ["InceptionFeatures"]

from pathlib import Path

import torch
from torch import Tensor

from dtr_lightning.errors import UserError
from dtr_lightning.metrics.features import Features, digest, rgb, unreadable

FILE = "weights-inception-2015-12-05-6726825d.pth"


class InceptionFeatures(Features):
    """Inception's 2,048 pooled features as FID defines them (TF1 graph and resize).

    The resize inside is TF1's: bilinear, without antialiasing. Needs torch-fidelity; weights are
    downloaded by it unless a local copy of its file is given. Another file's score is not "fid".

    Args:
        weights: local copy of weights-inception-2015-12-05-6726825d.pth.
    """

    digest = "6726825d"
    num_features = 2048
    num_spatial = 7 * 17 * 17
    extractor = "Inception 2015-12-05, pool_3"
    resize = "TF1 bilinear to 299x299, no antialiasing"

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        if weights and not Path(weights).is_file():
            raise UserError(f"weights {weights} do not exist")
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
                raise unreadable(weights, error) from error
        try:
            self.net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], weights)
        except (OSError, RuntimeError) as error:  # the latter also for a download cut short
            if weights:
                raise UserError(f"{weights} does not hold the Inception weights") from error
            raise UserError(
                f"cannot download the Inception weights ({type(error).__name__}); give a local "
                f"copy of {FILE}: --features.weights FILE, or --weights FILE of ADM's protocol"
            ) from error
        checksum = digest(weights) if weights else self.digest
        if not weights or checksum == self.digest:
            self.name = "fid"
        else:
            self.name = f"fd_inception_{Path(weights).stem}"
        self.which_weights = f"sha256 {checksum}"
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Returns the pool_3 features float32 (N, 2048)."""
        return self.net(rgb(images))[0].flatten(1)

    def logits(self, features: Tensor) -> Tensor:
        """Returns the logits (N, 1008) without the bias, as the inception score takes them."""
        return features @ self.net.fc.weight.T

    def activations(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns pool_3 (N, 2048), and the first 7 maps of mixed_6/conv (N, 2023), row by row.

        The latter are sFID's; the channel runs fastest, as in the TF1 graph.
        """
        caught = []
        branch = self.net.Mixed_6d.branch1x1
        hook = branch.register_forward_hook(lambda *call: caught.append(call[-1][:, :7]))
        try:
            pool = self(images)
        finally:
            hook.remove()
        return pool, caught[0].permute(0, 2, 3, 1).flatten(1).float()
