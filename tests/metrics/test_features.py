"""Laws of the features: timm's as timm computes them, names that do not lie, no code from files."""

import sys
from hashlib import sha256
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import timm
import torch
from torch import nn

from dtr_lightning.errors import UserError
from dtr_lightning.metrics import DigitsFeatures, InceptionFeatures, TimmFeatures


def test_timm_features_are_the_models(tmp_path):
    images = torch.randint(0, 256, (3, 1, 160, 160), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    features = TimmFeatures("test_resnet")
    assert features.name == "fd_test_resnet_untrained"
    assert torch.equal(features(images), TimmFeatures("test_resnet")(images))  # seeded
    torch.manual_seed(1)
    net = timm.create_model("test_resnet").eval()
    torch.save(net.state_dict(), tmp_path / "mine.pt")
    features = TimmFeatures("test_resnet", str(tmp_path / "mine.pt"))
    config = timm.data.resolve_model_data_config(net)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    x = (images.expand(-1, 3, -1, -1) / 255 - mean) / std
    expected = net.forward_head(net.forward_features(x), pre_logits=True)
    assert features.name == "fd_test_resnet_mine"
    assert torch.allclose(features(images), expected, atol=1e-5)
    assert features(images[..., :32, :32]).shape == (3, features.num_features)
    assert not features.train().net.training


class Code:
    def __reduce__(self):
        return (sys.exit, ("code in a checkpoint was run",))


def test_bad_features_are_user_errors(tmp_path, monkeypatch):
    torch.save({"x": Code()}, tmp_path / "evil.pt")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pt")
    bad = [
        ({"model": "test_resnett"}, "valid: .*test_resnet"),
        ({"weights": str(tmp_path / "none.pt")}, "do not exist"),
        ({"weights": str(tmp_path / "evil.pt")}, "code in it"),
        ({"weights": str(tmp_path / "other.pt")}, "does not hold"),
        ({"weights": "x.pt", "pretrained": True}, "not both"),
    ]
    for options, words in bad:
        with pytest.raises(UserError, match=words):
            TimmFeatures(**{"model": "test_resnet"} | options)
    fitting = "1x8x8 images, these are 3x8x8: give --features TimmFeatures .*InceptionFeatures"
    with pytest.raises(UserError, match=fitting):
        DigitsFeatures()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"give --features MNISTFeatures \(of digits\), Timm"):
        DigitsFeatures()(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match="pip install torch-fidelity"):
        InceptionFeatures()
    for error in (OSError, RuntimeError):
        module = SimpleNamespace(FeatureExtractorInceptionV3=Mock(side_effect=error))
        monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace())
        monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
        with pytest.raises(UserError, match=r"6726825d\.pth: --features\.weights FILE"):
            InceptionFeatures()


class Inception(nn.Module):
    """Stands for torch-fidelity's class, which an extra brings."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        self.path = feature_extractor_weights_path

    def forward(self, images):
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        return (images.float().mean((1, 2, 3), keepdim=True).expand(-1, 2048, 1, 1),)


def test_only_inceptions_own_weights_are_called_fid(tmp_path, monkeypatch):
    module = SimpleNamespace(FeatureExtractorInceptionV3=Inception)
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    features = InceptionFeatures()
    assert features.name == "fid" and not features.net.training
    assert features(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 2048)
    path = tmp_path / "mine.pth"
    torch.save({"x": torch.zeros(1)}, path)
    assert InceptionFeatures(str(path)).name == "fd_inception_mine"
    digest = sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(InceptionFeatures, "digest", digest)
    assert InceptionFeatures(str(path)).name == "fid"
    torch.save({"x": Code()}, path)
    with pytest.raises(UserError, match="code in it"):
        InceptionFeatures(str(path))
